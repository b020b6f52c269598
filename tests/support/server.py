"""A web server on this machine that gives files, with the faults of real ones."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

Server = TypeVar("Server", bound=ThreadingHTTPServer)


class FileServer(ThreadingHTTPServer):
    """Serves `files` (name to bytes) under their names.

    Attributes:
      faults: name to what goes wrong there: ("status", code), ("cut", bytes sent of each answer, number of answers),
        ("redirect", other name), ("slow", seconds before each KiB), ("no length",).
      requests: (name, value of the header Range or "") of every request.
      tags: whether answers carry an entity tag, which allows to go on.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.faults, self.requests, self.tags = files, {}, [], True

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        name, span = self.path.lstrip("/"), self.headers.get("Range", "")
        self.server.requests.append((name, span))
        kind, *values = self.server.faults.get(name, ("", 0))
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", f"/{values[0]}")
            self.end_headers()
            return
        if kind == "status" or name not in self.server.files:
            self.send_error(values[0] if kind == "status" else 404)
            return
        content = self.server.files[name]
        tag = f'"{hash(content)}"'
        start = int(found[1]) if (found := re.match(r"bytes=(\d+)-", span)) else 0
        if self.headers.get("If-Range", tag) != tag:
            start = 0
        if start >= max(len(content), 1):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if self.server.tags:
            self.send_header("ETag", tag)
        if kind != "no length":
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if kind == "cut" and values[1]:
            self.server.faults[name] = ("cut", values[0], values[1] - 1)
            body = body[: values[0]]
        for piece in range(0, len(body), 2**10 if kind == "slow" else 2**20):
            if kind == "slow":
                time.sleep(values[0])
            self.wfile.write(body[piece : piece + (2**10 if kind == "slow" else 2**20)])

    def log_message(self, *values: object) -> None:
        """Print nothing."""


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Run a server of files while the block runs."""
    with running(FileServer(files)) as server:
        yield server


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """Run a server while the block runs."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
