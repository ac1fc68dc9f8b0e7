"""A webhook that takes messages, or behaves as it is told."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PATH = "/services/T0/B0/verysecret"


class Hook:
    """What a hook got, and how it answers: statuses in turn, the last one for good; `hang` answers after the test."""

    def __init__(self, *statuses: int, hang: bool = False, headers: dict[str, str] | None = None) -> None:
        self.statuses, self.headers = list(statuses or [200]), headers or {}
        self.messages: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.over = threading.Event()
        self.hang = hang
        self.url = ""


@contextlib.contextmanager
def serving(hook: Hook) -> Iterator[Hook]:
    """Serves the hook on loopback while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if hook.hang:
                hook.over.wait(60)
            status = hook.statuses.pop(0) if len(hook.statuses) > 1 else hook.statuses[0]
            if status < 300 and not hook.hang:
                hook.messages.append(json.loads(body))
            with contextlib.suppress(OSError):
                self.send_response(status)
                for name, value in hook.headers.items():
                    self.send_header(name, value)
                self.end_headers()

        do_GET = do_POST

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook.url = f"http://127.0.0.1:{server.server_port}{PATH}"
    try:
        yield hook
    finally:
        hook.over.set()
        server.shutdown()
        server.server_close()
