# SPDX-License-Identifier: BSD-3-Clause
"""An HTTP server with the requests of a REST proxy of Kafka that the publisher sends."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class RestProxyServer(ThreadingHTTPServer):
    """Accepts records into topics that were created before; tests change its behavior."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/proxy"
        self.topics: dict[str, dict[str, Any]] = {}
        self.posts: list[tuple[str, str, dict[str, Any]]] = []
        """Topic, content type and body of each request with records."""
        self.tokens: set[str | None] = set()
        self.status = 200
        """Answer to records."""
        self.most_bytes = 10**9
        """Of a request with records."""
        self.answer: Any = {"offsets": [{"partition": 0, "offset": 0, "error": None}]}
        self.hanging = threading.Event()
        self.hanging.set()
        """Cleared: requests get no answer."""

    def records(self, topic: str) -> list[dict[str, Any]]:
        return [each["value"] for name, _, body in self.posts if name == topic for each in body["records"]]


class _Handler(BaseHTTPRequestHandler):
    server: RestProxyServer

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"cluster_id": "c1"}]} if self.path == "/proxy/v3/clusters" else {})

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(size))
        self.server.tokens.add(self.headers["Authorization"])
        self.server.hanging.wait()
        if self.path == "/proxy/v3/clusters/c1/topics":
            name = body.pop("topic_name")
            if name in self.server.topics:
                self._answer(400, {"error_code": 40002, "message": f"Topic '{name}' already exists."})
            else:
                self.server.topics[name] = body
                self._answer(201, {})
            return
        topic = self.path.removeprefix("/proxy/topics/")
        if topic not in self.server.topics:
            self._answer(404, {"error_code": 40401, "message": "Topic not found."})
        elif size > self.server.most_bytes:
            self._answer(413, {"message": "Request Entity Too Large"})
        elif self.server.status != 200:
            self._answer(self.server.status, {"message": "as the test wants"})
        else:
            self.server.posts.append((topic, self.headers["Content-Type"], body))
            self._answer(200, self.server.answer)

    def _answer(self, status: int, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def rest_proxy() -> Iterator[RestProxyServer]:
    """Yield a server that serves until the end."""
    with RestProxyServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.hanging.set()
            server.shutdown()
            thread.join()
