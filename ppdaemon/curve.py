# SPDX-License-Identifier: BSD-3-Clause
"""Encrypted ZeroMQ sockets (CURVE): both ends prove that they have their secret key.

A server admits the public keys in its allow-list. A peer whose key is deleted from the list is not
disconnected, because libzmq cannot do that; but `Gatekeeper.sender` no longer knows it.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from zmq.auth.asyncio import AsyncioAuthenticator

from ppdaemon.keyfiles import KeyPair, read_key_pair, read_public_key
from ppdaemon.throttle import Throttle

__all__ = ("ClientKeys", "Gatekeeper", "admitting", "new_key_pair")

_LOG = logging.getLogger(__name__)

LOG_INTERVAL_S = 10.0
"""A peer that is refused tries again each second."""


def new_key_pair() -> KeyPair:
    """Return a new pair of keys."""
    return KeyPair(*zmq.curve_keypair())


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """The keys for connecting to a server: one's own pair, and the public key that the server must have."""

    own: KeyPair
    server: bytes

    @classmethod
    def read(cls, own: Path | None, server: Path | None) -> "ClientKeys | None":
        """Read both files; `None` without ``server``. Raises `~ppdaemon.keyfiles.UnusableKey`."""
        if own is None or server is None:
            return None
        return cls(read_key_pair(own), read_public_key(server))

    def apply(self, socket: "zmq.Socket[Any]") -> None:
        """Set the options of a socket that is not connected yet."""
        socket.setsockopt(zmq.CURVE_SERVERKEY, self.server)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self.own.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self.own.secret)


class Gatekeeper(AsyncioAuthenticator):
    """Admits peers by their public key; one for all servers of a context, used as a context manager.

    `allowed` has the names of the admitted keys for each domain; a domain is one socket.
    """

    def __init__(self, context: zmq.asyncio.Context, keys: KeyPair, allowed: Mapping[str, Mapping[str, str]]):
        super().__init__(context, log=_LOG)
        self._keys = keys
        self._names_by_key = dict(allowed)
        self._throttle = Throttle(LOG_INTERVAL_S, time.monotonic)
        for domain in allowed:
            self.configure_curve_callback(domain, self)

    def __enter__(self) -> "Gatekeeper":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def apply(self, socket: "zmq.Socket[Any]", domain: str) -> None:
        """Set the options of a socket that is not bound yet."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, domain)
        # Without it libzmq admits any key when the handler does not run.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def sender(self, domain: str, frame: zmq.Frame) -> str | None:
        """Return the name of who has sent a message, by one of its frames (received with ``copy=False``);
        `None` if the key was deleted from the allow-list after the connection.
        """
        return self._names_by_key[domain].get(str(frame.get("User-Id")))

    def replace(self, domain: str, allowed: Mapping[str, str]) -> set[str]:
        """Use another allow-list; return the names whose keys are no longer in it."""
        before, self._names_by_key[domain] = self._names_by_key[domain], allowed
        return {name for key, name in before.items() if allowed.get(key) != name}

    def callback(self, domain: str, key: bytes) -> bool:
        """Return whether a key may connect; called by the base class."""
        name = self._names_by_key[domain].get(key.decode())
        if name is None and self._throttle.passes(domain):
            _LOG.warning(
                "refused a connection: its key is not in the folder security.%s",
                domain,
                extra={"public_key": key.decode(), "total": self._throttle.by_kind[domain]},
            )
        return name is not None

    async def handle_zap_message(self, msg: list[bytes]) -> None:
        """Answer a request of libzmq; called by the base class, whose task an exception would end: no
        further peer could connect.
        """
        try:
            await super().handle_zap_message(msg)
        except Exception:
            _LOG.exception("internal error: a connection is refused; please report this")
            # The socket must answer before it can receive again. 300: the peer may try again.
            self._send_zap_reply(msg[1], b"300", b"internal error")


def admitting(
    context: zmq.asyncio.Context,
    key: Path | None,
    read_allowed: Callable[[], Mapping[str, Mapping[str, str]]],
) -> AbstractContextManager[Gatekeeper | None]:
    """Return the gatekeeper of a program with this key; of none without a key.

    Raises `~ppdaemon.keyfiles.UnusableKey`.
    """
    return nullcontext() if key is None else Gatekeeper(context, read_key_pair(key), read_allowed())
