# SPDX-License-Identifier: BSD-3-Clause
"""TLS and SASL before the client library's own Kafka cluster, which has neither.

Speaks Kafka's exchange of credentials (``SaslHandshake``, ``SaslAuthenticate``; PLAIN by RFC 4616,
SCRAM-SHA-512 by RFC 5802), then passes requests on. Answers with the cluster's address get its own one;
it offers only versions of which it knows where that is.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
import ssl
import struct
import threading
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

METADATA, FIND_COORDINATOR, SASL_HANDSHAKE, API_VERSIONS, SASL_AUTHENTICATE = 3, 10, 17, 18, 36
"""Keys of the protocol's requests."""
OFFERED = {METADATA: 4, FIND_COORDINATOR: 2, API_VERSIONS: 0}
"""The newest version of requests, where it is not that of the cluster."""
OURS = [(SASL_HANDSHAKE, 1, 1), (SASL_AUTHENTICATE, 0, 0)]
"""Requests that the cluster does not know, with their versions."""
UNSUPPORTED_MECHANISM, UNSUPPORTED_VERSION, AUTHENTICATION_FAILED = 33, 35, 58
"""Errors of the protocol."""
MECHANISMS = ("PLAIN", "SCRAM-SHA-512")
ITERATIONS = 4096
HOST = "localhost"


class KafkaFront:
    """Stands before a cluster, with TLS if it has a certificate.

    Attributes
    ----------
    users : `dict` [`str`, `str`]
        Passwords by user; may be changed at any time.
    logins : `list` [`tuple` [`str`, `str`]]
        Mechanism and user of each connection that was admitted.
    refused : `int`
        Number of logins that were refused.
    """

    def __init__(self, cluster: str, certificate: Path | None, users: Mapping[str, str]):
        host, _, port = cluster.rpartition(":")
        self.cluster = host, int(port)
        self.users = dict(users)
        self.logins: list[tuple[str, str]] = []
        self.refused = 0
        self.port = 0
        self._tls = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.present(certificate)
        self._connections: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    @property
    def brokers(self) -> str:
        return f"{HOST}:{self.port}"

    def present(self, certificate: Path) -> None:
        """Present another certificate to the next connections."""
        assert self._tls is not None
        self._tls.load_cert_chain(certificate)

    def drop(self) -> None:
        """Close all connections, as a broker that is restarted."""
        self._call(self._drop())

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, call: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(call, self._loop).result(20)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, HOST, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _drop(self) -> None:
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _close(self) -> None:
        self._server.close()
        await self._drop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(OSError, EOFError, asyncio.CancelledError):
                await _Connection(self, reader, writer).serve()
        finally:
            self._connections.discard(task)
            writer.close()


class _Connection:
    """One connection of a client, and that to the cluster."""

    def __init__(self, front: KafkaFront, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._front = front
        self._reader = reader
        self._writer = writer
        self._asked: dict[int, tuple[int, int]] = {}
        """Key and version of requests that were passed on, by their numbers."""

    async def serve(self) -> None:
        answers, requests = await asyncio.open_connection(*self._front.cluster)
        try:
            requests.write(_frame(struct.pack(">hhih", API_VERSIONS, 0, 0, -1)))
            if await self._log_in(_versions(await _read(answers))):
                back = asyncio.create_task(self._pass_back(answers))
                try:
                    await self._pass_on(requests)
                finally:
                    back.cancel()
        finally:
            requests.close()

    async def _log_in(self, versions: bytes) -> bool:
        """Serve requests until the client is admitted; return whether it is."""
        while True:
            key, version, number, body = _request(await _read(self._reader))
            match key:
                case 18 if version > 0:  # the client asks again, with the version that it finds here
                    entry = struct.pack(">hihhh", UNSUPPORTED_VERSION, 1, API_VERSIONS, 0, 0)
                    await self._answer(number, entry)
                case 18:
                    await self._answer(number, versions)
                case 17:
                    mechanism = body[2:].decode()
                    error = 0 if mechanism in MECHANISMS else UNSUPPORTED_MECHANISM
                    names = b"".join(map(_text, MECHANISMS))
                    await self._answer(number, struct.pack(">hi", error, len(MECHANISMS)) + names)
                    if error:
                        return False
                    user = await (self._plain() if mechanism == "PLAIN" else self._scram())
                    if user:
                        self._front.logins.append((mechanism, user))
                    else:
                        self._front.refused += 1
                    return bool(user)
                case _:  # as a broker does
                    return False

    async def _plain(self) -> str:
        number, message = await self._token()
        _, user, password = message.decode().split("\0")
        if not hmac.compare_digest(self._front.users.get(user, ""), password) or not password:
            return await self._refuse(number)
        await self._reply(number, b"")
        return user

    async def _scram(self) -> str:
        number, message = await self._token()
        gs2, _, bare = message.decode().partition(",,")
        first = dict(each.split("=", 1) for each in bare.split(","))
        user, nonce, salt = first["n"], first["r"] + secrets.token_hex(8), secrets.token_bytes(16)
        challenge = f"r={nonce},s={base64.b64encode(salt).decode()},i={ITERATIONS}"
        await self._reply(number, challenge.encode())
        number, message = await self._token()
        without_proof, _, proof = message.decode().rpartition(",p=")
        final = dict(each.split("=", 1) for each in without_proof.split(","))
        agreed = f"{bare},{challenge},{without_proof}".encode()
        salted = hashlib.pbkdf2_hmac("sha512", self._front.users.get(user, "").encode(), salt, ITERATIONS)
        client_key = hmac.digest(salted, b"Client Key", "sha512")
        signature = hmac.digest(hashlib.sha512(client_key).digest(), agreed, "sha512")
        expected = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        binding = base64.b64encode(f"{gs2},,".encode()).decode()
        known = user in self._front.users and (final["r"], final["c"]) == (nonce, binding)
        if not known or not hmac.compare_digest(base64.b64decode(proof), expected):
            return await self._refuse(number)
        server_key = hmac.digest(salted, b"Server Key", "sha512")
        verifier = base64.b64encode(hmac.digest(server_key, agreed, "sha512"))
        await self._reply(number, b"v=" + verifier)
        return user

    async def _token(self) -> tuple[int, bytes]:
        key, _, number, body = _request(await _read(self._reader))
        assert key == SASL_AUTHENTICATE, key
        return number, body[4:]

    async def _reply(self, number: int, token: bytes) -> None:
        await self._answer(number, struct.pack(">hhi", 0, -1, len(token)) + token)

    async def _refuse(self, number: int) -> str:
        text = _text("Authentication failed during authentication due to invalid credentials")
        await self._answer(number, struct.pack(">h", AUTHENTICATION_FAILED) + text + struct.pack(">i", 0))
        return ""

    async def _answer(self, number: int, body: bytes) -> None:
        self._writer.write(_frame(struct.pack(">i", number) + body))
        await self._writer.drain()

    async def _pass_on(self, requests: asyncio.StreamWriter) -> None:
        while True:
            frame = await _read(self._reader)
            key, version, number, _ = _request(frame)
            self._asked[number] = key, version
            requests.write(_frame(frame))
            await requests.drain()

    async def _pass_back(self, answers: asyncio.StreamReader) -> None:
        with suppress(OSError, EOFError):
            while True:
                frame = await _read(answers)
                (number,) = struct.unpack_from(">i", frame)
                key, version = self._asked.pop(number)
                self._writer.write(_frame(frame[:4] + self._with_our_address(key, version, frame[4:])))
                await self._writer.drain()
        self._writer.close()

    def _with_our_address(self, key: int, version: int, body: bytes) -> bytes:
        """Replace the address of the cluster's only broker in an answer."""
        if key == METADATA:  # (time), number of brokers; node, host, port
            begin = (4 if version >= 3 else 0) + 4 + 4
        elif key == FIND_COORDINATOR:  # (time), error, (its text); node, host, port
            begin = (4 if version >= 1 else 0) + 2
            if version >= 1:
                begin += 2 + max(0, struct.unpack_from(">h", body, begin)[0])
            begin += 4
        else:
            return body
        end = begin + 2 + struct.unpack_from(">h", body, begin)[0] + 4
        return body[:begin] + _text(HOST) + struct.pack(">i", self._front.port) + body[end:]


def _versions(frame: bytes) -> bytes:
    """Return the answer of a cluster to ``ApiVersions``, changed to what is offered here."""
    _, _, count = struct.unpack_from(">ihi", frame)
    theirs = [struct.unpack_from(">hhh", frame, 10 + 6 * number) for number in range(count)]
    offered = [(key, low, min(high, OFFERED.get(key, high))) for key, low, high in theirs] + OURS
    return struct.pack(">hi", 0, len(offered)) + b"".join(struct.pack(">hhh", *each) for each in offered)


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Return one request or answer. Raises `EOFError` at the end."""
    (length,) = struct.unpack(">i", await reader.readexactly(4))
    if not 0 < length < 10**8:
        raise EOFError  # no Kafka
    return await reader.readexactly(length)


def _frame(content: bytes) -> bytes:
    return struct.pack(">i", len(content)) + content


def _request(frame: bytes) -> tuple[int, int, int, bytes]:
    """Return key, version, number and body of a request."""
    key, version, number, client = struct.unpack_from(">hhih", frame)
    return key, version, number, frame[10 + max(0, client) :]


def _text(value: str) -> bytes:
    return struct.pack(">h", len(value.encode())) + value.encode()
