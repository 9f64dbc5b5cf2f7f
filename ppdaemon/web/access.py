# SPDX-License-Identifier: BSD-3-Clause
"""Who may see the page: everybody on this host, those who know a token, or whom a proxy lets pass. Pure."""

import hashlib
import ipaddress
from dataclasses import dataclass

from ppdaemon.errors import ConfigError
from ppdaemon.tokenfile import is_token

__all__ = ("COOKIE", "Access", "check_listen")

COOKIE = "ppweb"

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Access:
    """What a request must show. Without a token only local names of this host are answered."""

    token: str | None = None
    behind_proxy: bool = False

    @property
    def cookie(self) -> str:
        """The value of the cookie: who steals it does not know the token."""
        return hashlib.sha256(f"ppweb {self.token}".encode()).hexdigest()

    def is_token(self, text: str) -> bool:
        """Return whether this is the token."""
        return self.token is not None and is_token(text, self.token)

    def allows(self, *, authorization: str, cookie: str) -> bool:
        """Return whether a request with these headers may see the page."""
        if self.token is None:
            return True
        return self.is_token(authorization.removeprefix("Bearer ")) or is_token(cookie, self.cookie)

    def allows_host(self, host: str) -> bool:
        """Return whether a request may name this host. Otherwise any web site could give its own name the
        address of this host, and read the page in a browser here.
        """
        return self.token is not None or self.behind_proxy or host.lower() in LOCAL_NAMES


def check_listen(listen: str, access: Access) -> tuple[str, int]:
    """Return host and port of an address such as ``127.0.0.1:8080``.

    Raises `~ppdaemon.errors.ConfigError` if it is none, or if others could reach it unasked.
    """
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError([f"--listen {listen}: use ADDRESS:PORT, such as 127.0.0.1:8080"])
    if access.token is None and not access.behind_proxy and not _is_loopback(host.strip("[]")):
        raise ConfigError(
            [f"--listen {listen}: other hosts can reach this: add --token-file or --behind-proxy"]
        )
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
