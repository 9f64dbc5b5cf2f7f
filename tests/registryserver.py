# SPDX-License-Identifier: BSD-3-Clause
"""A schema registry over HTTPS, which asks for a user and a password."""

import base64
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class RegistryServer(ThreadingHTTPServer):
    """Has schemas by number; `login` is the user and the password that it accepts."""

    daemon_threads = True

    def __init__(self, certificate: Path, login: tuple[str, str], schemas: Mapping[int, Any]):
        super().__init__(("localhost", 0), _Handler)
        self.login = login
        self.schemas = schemas
        self.refused = 0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.present(certificate)
        # The handshake is made by the thread of the connection.
        self.socket = self._tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def present(self, certificate: Path) -> None:
        """Present another certificate to the next connections."""
        self._tls.load_cert_chain(certificate)

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients end the connection if they do not accept the certificate."""


class _Handler(BaseHTTPRequestHandler):
    server: RegistryServer

    def do_GET(self) -> None:
        number = int(self.path.rpartition("/")[2])
        login = base64.b64encode(":".join(self.server.login).encode()).decode()
        if self.headers["Authorization"] != f"Basic {login}":
            self.server.refused += 1
            self._answer(401, {"error_code": 401, "message": "Unauthorized"})
        elif number not in self.server.schemas:
            self._answer(404, {"error_code": 40403, "message": "Schema not found"})
        else:
            self._answer(200, {"schema": json.dumps(self.server.schemas[number])})

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def registry(
    certificate: Path, login: tuple[str, str], schemas: Mapping[int, Any]
) -> Iterator[RegistryServer]:
    with RegistryServer(certificate, login, schemas) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
