"""A small model hub on loopback: the few addresses that huggingface_hub asks, and the faults a real one has."""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "a" * 40


@dataclasses.dataclass
class Hub:
    """One repository. `broken` files break off once after half their bytes; `wrong` ones come with other bytes.

    `requests` collects (method, file, range asked for). Where there is a `meeting`, each large file waits for another.
    `card` is the head of its model card.
    """

    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    broken: set[str] = dataclasses.field(default_factory=set)
    wrong: set[str] = dataclasses.field(default_factory=set)
    refused: set[str] = dataclasses.field(default_factory=set)
    requests: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    meeting: threading.Barrier | None = None
    card: dict[str, Any] = dataclasses.field(default_factory=dict)
    url: str = ""

    def listing(self) -> dict[str, Any]:
        """What the hub says of the repository: large files with sha256, small ones with git's blob id."""
        siblings = []
        for name, content in self.files.items():
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
            if name.endswith((".safetensors", ".parquet")):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        known = {"id": "org/model", "modelId": "org/model", "sha": self.commit, "tags": []}
        return known | {"siblings": siblings, "cardData": self.card}


def _etag(name: str, content: bytes) -> str:
    return hashlib.sha256(name.encode() + content).hexdigest()


@contextlib.contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serves the repository for as long as the context lasts, and is what huggingface_hub asks.

    It is a model and a data set at once: `org/model`.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if hub.gated:
                self.send(403, b"{}", body, {"X-Error-Code": "GatedRepo", "X-Error-Message": "access is restricted"})
            elif found := re.fullmatch(r"/api/(models|datasets)/org/model(/revision/(?P<revision>.+))?", path):
                known = found["revision"] in (None, "main", COMMIT)
                header = {} if known else {"X-Error-Code": "RevisionNotFound"}
                self.send(200 if known else 404, json.dumps(hub.listing()).encode(), body, header)
            elif re.fullmatch(r"/api/(models|datasets)/org/model/tree/.*", path):
                tree = [
                    {
                        "type": "file",
                        "path": file["rfilename"],
                        "size": file["size"],
                        "oid": file["blobId"],
                        **({"lfs": {"oid": file["lfs"]["sha256"], **file["lfs"]}} if "lfs" in file else {}),
                    }
                    for file in hub.listing()["siblings"]
                ]
                self.send(200, json.dumps(tree).encode(), body, {})
            elif (file := re.fullmatch(rf"(?:/datasets)?/org/model/resolve/{COMMIT}/(.+)", path)) and file[
                1
            ] in hub.files:
                self.file(file[1], body)
            else:
                self.send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})

        def file(self, name: str, body: bool) -> None:
            if name not in hub.files:
                self.send(404, b"{}", body, {"X-Error-Code": "EntryNotFound"})
                return
            content = hub.files[name]
            if body and hub.meeting and name.endswith(".safetensors"):
                hub.meeting.wait(timeout=30)
            asked = self.headers.get("Range", "")
            hub.requests.append(("GET" if body else "HEAD", name, asked))
            if body and name in hub.refused:
                self.send(500, b"", body, {})
                return
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_etag(name, content)}"', "Accept-Ranges": "bytes"}
            sent = content[::-1] if name in hub.wrong else content
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first or 0), min(int(last or len(content)) + 1, len(content))
            if asked:
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            status = 206 if asked else 200
            if body and name in hub.broken:
                hub.broken.remove(name)
                self.send(status, sent[start:end], body, headers, cut=len(content) // 2)
            else:
                self.send(status, sent[start:end], body, headers)

        def send(self, status: int, data: bytes, body: bool, headers: dict[str, str], cut: int = 0) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data[:cut] if cut else data)
            if cut:
                self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", hub.url)
            patch.setattr(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
            )
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
            yield hub
    finally:
        server.shutdown()
        server.server_close()
