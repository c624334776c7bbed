"""A stand-in for the model hub on this machine, with one small model, one gated, one that is away
and one whose files break off half-way."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + 34 * "0"
REFUSALS = {"/gated/": (403, "GatedRepo"), "/away/": (404, "RepoNotFound"), "/nope": (404, "RevisionNotFound")}


def _handler(folder: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            for part, (status, code) in REFUSALS.items():
                if part in path:
                    return self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})
            if path.startswith("/api/"):
                return self.answer(200, json.dumps(self.listing(path)).encode(), {"Content-Type": "application/json"})

            body = (folder / path.rpartition("/")[2]).read_bytes()
            headers = {
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
                "Content-Length": str(len(body)),
            }
            return self.answer(200, body[: len(body) // 2] if path.startswith("/torn/") else body, headers)

        def listing(self, path: str) -> object:
            files = sorted(item for item in folder.iterdir() if item.is_file())
            if "/tree/" in path:
                return [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0"} for f in files]
            return {"id": "own/tiny", "sha": COMMIT, "siblings": [{"rfilename": f.name} for f in files]}

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    return Handler


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve the files of a model folder as ``own/tiny``; yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
