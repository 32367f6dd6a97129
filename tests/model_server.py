"""A server with models, for tests: plain files, Hugging Face's hub, and the GPU service's file service."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40
PIECE = 64 * 1024


class ModelServer:
    """What is served, what was asked for, and where an answer stops.

    ``files``: bytes by path. ``repositories``: bytes by the file's name, by ``owner/name``; all files of a repository are
    large ones, whose SHA-256 the hub knows. ``hold_at``: an answer stops after this number of bytes of the file, until
    ``go`` is set. ``sent``: path, first byte and number of bytes of each body. ``refuses``: status by path.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.hold_at: int | None = None
        self.go = threading.Event()
        self.held = threading.Event()
        self.sent: list[list[Any]] = []
        self.headers: list[dict[str, str]] = []
        self.refuses: dict[str, int] = {}
        self.listed_sizes: dict[str, int] = {}
        self.sums: dict[str, str] = {}
        self.download: Callable[[dict[str, Any]], tuple[int, dict[str, str], bytes]] | None = None
        self.redirects: dict[str, str] = {}
        self.tag = '"one"'
        self.bucket = "models"

    def bytes_of(self, path: str) -> int:
        """Bytes that were sent of a file."""
        return sum(count for name, _, count in self.sent if name == path)

    def gets(self, path: str) -> list[int]:
        """The first byte of each answer with a file's body."""
        return [begin for name, begin, _ in self.sent if name == path]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def model_server(host: str = "127.0.0.1") -> Iterator[ModelServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._get(body=False)

        def do_GET(self) -> None:
            self._get(body=True)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.headers.append(dict(self.headers))
            if self.path != "/api/models/download" or server.download is None:
                self._answer(404, b"{}")
                return
            status, headers, data = server.download(asked)
            self._answer(status, data, headers)

        def _get(self, *, body: bool) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            server.headers.append(dict(self.headers))
            if path in server.refuses:
                self._answer(server.refuses[path], b"{}")
            elif path in server.redirects:
                self._answer(302, b"", {"Location": server.redirects[path]})
            elif path == "/internal/list":
                asked = parse_qs(parts.query)
                self._list(asked["prefix"][0] if asked["bucket"] == [server.bucket] else "/")
            elif found := re.fullmatch(rf"/internal/download/{server.bucket}/(.+)", path):
                self._file(f"/bucket/{found[1]}", server.files[f"/bucket/{found[1]}"], body=body)
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
                self._repository(found[1], (found[2] or "").rpartition("/")[2])
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
                self._tree(found[1])
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self._blob(found[1], found[2], body=body)
            elif path in server.files:
                self._file(path, server.files[path], body=body)
            else:
                self._answer(404, b"{}")

        def _list(self, prefix: str) -> None:
            files = [
                {"key": name.removeprefix("/bucket/"), "size": len(data)}
                for name, data in server.files.items()
                if name.startswith(f"/bucket/{prefix}")
            ]
            found = {"success": True, "bucket": server.bucket, "files": files}
            self._answer(200, json.dumps(found).encode())

        def _repository(self, name: str, revision: str) -> None:
            if name not in server.repositories or revision == "gone":
                code = "RevisionNotFound" if name in server.repositories else "RepoNotFound"
                self._answer(404, b"{}", {"X-Error-Code": code})
                return
            siblings = [{"rfilename": file} for file in server.repositories[name]]
            found = {"id": name, "sha": COMMIT, "siblings": siblings}
            self._answer(200, json.dumps(found).encode())

        def _tree(self, name: str) -> None:
            found = []
            for file, data in server.repositories[name].items():
                size = server.listed_sizes.get(file, len(data))
                lfs = {"oid": server.sums.get(file, sha256(data)), "size": size, "pointerSize": 1}
                row = {"type": "file", "path": file, "oid": "0" * 40, "size": size, "lfs": lfs}
                found.append(row)
            self._answer(200, json.dumps(found).encode())

        def _blob(self, name: str, file: str, *, body: bool) -> None:
            data = server.repositories.get(name, {}).get(file)
            if data is None:
                self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
                return
            total = server.sums.get(file, sha256(data))
            size = server.listed_sizes.get(file, len(data))
            extra = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(size)}
            extra |= {"X-Linked-Etag": f'"{total}"', "ETag": f'"{total}"'}
            self._file(f"/{name}/{file}", data, body=body, extra=extra)

        def _file(
            self, path: str, data: bytes, *, body: bool, extra: dict[str, str] | None = None
        ) -> None:
            headers = {"ETag": server.tag, "Accept-Ranges": "bytes", **(extra or {})}
            begin, status = 0, 200
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            same = self.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
            if body and asked and same:
                begin, status = int(asked[1]), 206
                headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data) - begin))
            self.end_headers()
            if not body:
                return
            note = [path, begin, 0]
            server.sent.append(note)
            with contextlib.suppress(OSError):
                for at in range(begin, len(data), PIECE):
                    if server.hold_at is not None and at >= server.hold_at:
                        server.held.set()
                        server.go.wait(30)
                    self.wfile.write(data[at : at + PIECE])
                    note[2] += len(data[at : at + PIECE])

        def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in ({"Content-Type": "application/json"} | (headers or {})).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    http = ThreadingHTTPServer((host, 0), Handler)
    http.daemon_threads = True
    server = ModelServer(f"http://{host}:{http.server_port}")
    thread = threading.Thread(
        target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield server
    finally:
        server.go.set()
        http.shutdown()
        http.server_close()
        thread.join()
