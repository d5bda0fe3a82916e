"""A stand-in for the model hub: serves folders on loopback with the few answers that the hub's client asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    root: Path

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        self._send(body, *self._found())

    def _found(self) -> tuple[int, bytes, dict[str, str]]:
        """Status, content and headers for the path that was asked for."""
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repo = self.root / "/".join(parts[2:4])
            if not repo.is_dir():
                return 404, b"{}", {"X-Error-Code": "RepoNotFound"}
            files = [
                {"rfilename": p.name, "path": p.name, "type": "file", "size": p.stat().st_size, "oid": "0" * 40}
                for p in sorted(repo.iterdir())
            ]
            if "tree" in parts:
                return 200, json.dumps(files).encode(), {}
            info = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": files, "private": False, "tags": []}
            return 200, json.dumps(info).encode(), {}
        repo, file = self.root / "/".join(parts[:2]), parts[-1]
        if not repo.is_dir():
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        if not (repo / file).is_file():
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
        content = (repo / file).read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        return 200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'}

    def _send(self, body: bool, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing: the client's requests are not test output."""


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve `root/<owner>/<name>/` as repositories; yields the endpoint."""
    handler = type("Handler", (_Handler,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
