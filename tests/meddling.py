"""An HTTP proxy before an object store that changes what it sends, as a broken cache or disk does."""

import contextlib
import http.client
import http.server
import sys
import threading
from collections.abc import Iterator
from typing import Any

MEDDLINGS = ("shorten", "shorten and say so", "flip a bit")


class Meddler:
    """Passes requests on as they are, so that signatures stay valid; `meddling` is done to the bodies of objects.

    `only` is what their names must have, `times` how often it is done at most.

    Args:
        target: `http://host:port` of the store.
    """

    def __init__(self, target: str) -> None:
        self.target = target.removeprefix("http://")
        self.meddling, self.only, self.meddled, self.address = "", "", 0, ""
        self.times = sys.maxsize

    def change(self, method: str, path: str, answer: http.client.HTTPResponse, body: bytes) -> tuple[bytes, Any]:
        """The body and the headers to send for an answer."""
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in HOP}
        is_object = method == "GET" and answer.status in (200, 206) and answer.getheader("ETag") and body
        if not self.meddling or not is_object or self.only not in path or self.meddled >= self.times:
            return body, headers
        self.meddled += 1
        if self.meddling == "flip a bit":
            at = len(body) // 2
            return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :], headers
        body = body[: len(body) // 2]
        if self.meddling == "shorten and say so":  # the headers fit, as if the object were shorter
            start = int((answer.getheader("Content-Range") or "bytes 0-").removeprefix("bytes ").partition("-")[0])
            end = start + len(body)
            headers |= {name: f"bytes {start}-{end - 1}/{end}" for name in headers if name.lower() == "content-range"}
        return body, headers


HOP = ("connection", "content-length", "transfer-encoding", "keep-alive")


@contextlib.contextmanager
def meddler(target: str) -> Iterator[Meddler]:
    """Serves one for as long as the context lasts."""
    found = Meddler(target)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(found.target, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
            connection.request(self.command, self.path, content, headers)
            got = connection.getresponse()
            body, answered = found.change(self.command, self.path, got, got.read())
            self.send_response(got.status)
            length = got.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(body))
            for name, value in (answered | {"Content-Length": length}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()
