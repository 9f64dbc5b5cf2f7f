# SPDX-License-Identifier: BSD-3-Clause
"""A small object store on this host: plain HTTP, and what boto3 asks of S3."""

import hashlib
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit


class Store:
    """What lies in the store, and what was asked of it."""

    def __init__(self, port: int):
        self.uri = f"http://127.0.0.1:{port}"
        self.objects: dict[str, bytes] = {}
        """By their whole path, unescaped, with the first slash."""
        self.asked: Counter[tuple[str, str]] = Counter()
        """Requests by method and path."""
        self.sent: Counter[str] = Counter()
        """Bytes by path."""
        self.fails_with: int | None = None
        """The status of all answers."""
        self.closed = threading.Event()
        self.holding = False
        """Whether requests are kept waiting."""

    def reads(self, ending: str) -> int:
        """Return how many GET requests were for paths with an ending."""
        return sum(n for (method, path), n in self.asked.items() if method == "GET" and path.endswith(ending))

    @property
    def s3_environment(self) -> dict[str, str]:
        """Return what boto3 needs to take this for S3."""
        return {
            "S3_ENDPOINT_URL": self.uri,
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    # HTTP/1.0, so that no client keeps a connection open after the test.
    store: Store

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.store.asked[self.command, path] += 1
        while self.store.holding and not self.store.closed.wait(0.02):
            pass
        content = self.store.objects.get(path)
        if self.store.fails_with is not None:
            self._answer(self.store.fails_with, b"")
        elif content is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._send(path, content)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_OPTIONS(self) -> None:
        self._answer(200, b"")

    def _send(self, path: str, content: bytes) -> None:
        wanted = self.headers.get("Range")
        part, headers = content, {"ETag": f'"{hashlib.md5(content).hexdigest()}"'}
        if wanted is not None:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        if self.command == "GET":
            self.store.sent[path] += len(part)
        self._answer(200 if wanted is None else 206, part, headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def serving() -> Iterator[Store]:
    """Run a store."""
    handler = type("Handler", (_Handler,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        store = handler.store = Store(server.server_address[1])  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield store
        finally:
            store.closed.set()
            server.shutdown()
            thread.join()
