# SPDX-License-Identifier: BSD-3-Clause
"""What consumers and producers of Kafka share: the options of a client, and why its brokers cannot be used.

The client library reports that brokers are away; the reason is in its log only, and its text is the same
for each fault of a certificate.
"""

import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ppdaemon.errors import Unavailable
from ppdaemon.passwordfile import read_password

__all__ = ("Brokers", "client_options")

MAX_BACKOFF = "reconnect.backoff.max.ms"
LONGEST_BACKOFF_MS = 10_000
"""Default of the library."""
PROBE_S = 3.0
"""Time limit of each step of a connection that is made to see a certificate."""
PROBE_PAUSE_S = 60.0
"""Shortest interval of such connections to one broker."""

_FAILED = re.compile(
    r"(?:\[thrd:[^\]]*\]: )?(?:(?P<protocol>\w+)://)?(?P<broker>\S+:\d+)/\S+: (?P<reason>.*?)"
    r" \(after \d+ms in state (?P<state>\w+).*\)"
)
"""A line of the library's log about a broker."""


def client_options(options: Mapping[str, str], password: Path | None) -> dict[str, str]:
    """Return the options of a configuration, with the password of its file.

    Raises `~ppdaemon.errors.Unavailable` if the file cannot be used.
    """
    if password is None:
        return dict(options)
    try:
        return {**options, "sasl.password": read_password(password)}
    except ValueError as error:
        raise Unavailable(f"Kafka: {error}") from None


class Brokers:
    """Reads the log of a client; it is the `logger` among the client's options.

    `options` are those of the configuration, `clock` returns monotonic seconds. What it says may be read in
    another thread.
    """

    def __init__(self, options: Mapping[str, str], clock: Callable[[], float] = time.monotonic):
        self._user = options.get("sasl.username", "")
        self._options = options
        longest_ms = options.get(MAX_BACKOFF, "")
        # A broker that refused a connection is tried again within 1.5 of these; nothing reports a success.
        # The library refuses what is no number.
        self._remember_s = (int(longest_ms) if longest_ms.isdecimal() else LONGEST_BACKOFF_MS) / 500
        self._clock = clock
        self._refusals: dict[str, tuple[float, str]] = {}
        """By broker: when the connection was refused by one of its ends, and why."""
        self._probes: dict[str, tuple[float, str]] = {}
        """By broker: when its certificate was looked at, and what is wrong with it."""
        self.reason = ""
        """Why a connection failed last."""

    @property
    def refusal(self) -> str:
        """Why a broker does not accept this client, or the client not that broker; empty if there is none.

        Others may be used; but this one stays the leader of its partitions, as one that is down does not.
        """
        since = self._clock() - self._remember_s
        return next((text for at, text in tuple(self._refusals.values()) if at > since), "")

    def forget(self) -> None:
        """Drop the reason of the last failure: the cluster has answered."""
        self.reason = ""

    def log(self, _level: int, _format: str, *arguments: object) -> None:
        """Take a line of the library's log, as `logging.Logger.log` does: facility, client and text."""
        if len(arguments) != 3 or arguments[0] not in ("FAIL", "ERROR"):
            return
        if (match := _FAILED.fullmatch(str(arguments[2]))) is None:
            return
        broker = match["broker"]
        self.reason, refused = self._explained(
            broker, match["protocol"] or "", match["reason"], match["state"]
        )
        if refused:
            self._refusals[broker] = self._clock(), self.reason

    def _explained(self, broker: str, protocol: str, reason: str, state: str) -> tuple[str, bool]:
        """Return what happened and what one can do, and whether waiting does not help."""
        if "certificate verify failed" in reason:
            fault = self._certificate_fault(broker) or (
                "it is signed by an unknown authority, has expired, or is for another host name"
            )
            text = f"the certificate of {broker} is not accepted: {fault}"
            return f"{text}; check ssl.ca.location and the broker's address, or renew the certificate", True
        if state == "SSL_HANDSHAKE":
            text = f"{broker}: no TLS connection: {reason}"
            return f"{text}; if this listener has no TLS, change security.protocol", "alert" in reason
        if state.startswith("AUTH"):
            text = f"{broker} refuses user {self._user!r}: {reason}"
            return f"{text}; check sasl.username, its password, sasl.mechanism and security.protocol", True
        if "isconnected" in reason and state == "APIVERSION_QUERY" and not protocol.endswith("ssl"):
            text = f"{broker} closed the connection: it may expect TLS"
            return f"{text}; then set security.protocol to SASL_SSL or SSL", False
        if "isconnected" in reason and not protocol.startswith("sasl"):
            text = f"{broker} closed the connection: {reason}"
            return f"{text}; if it expects a user, set security.protocol to SASL_SSL", False
        return f"{broker}: {reason}", False

    def _certificate_fault(self, broker: str) -> str:
        """Look at the certificate of a broker, now and then; return what is wrong with it."""
        now = self._clock()
        at, fault = self._probes.get(broker, (now - PROBE_PAUSE_S, ""))
        if now - at >= PROBE_PAUSE_S:
            fault = certificate_fault(broker, self._options)
            self._probes[broker] = now, fault
        return fault


def certificate_fault(address: str, options: Mapping[str, str]) -> str:
    """Return why the certificate of a server (``HOST:PORT``) is not accepted; empty if that is not seen.

    `options` are those of the client: which authorities it trusts, and whether it checks names of hosts.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    authority = options.get("ssl.ca.location")
    try:
        folder = authority is not None and Path(authority).is_dir()
        context = ssl.create_default_context(
            cafile=None if folder else authority,
            capath=authority if folder else None,
            cadata=options.get("ssl.ca.pem"),
        )
        # As the library: Python would first name what is unusual in an authority, which the library accepts.
        context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST
        context.check_hostname = options.get("ssl.endpoint.identification.algorithm") != "none"
        with socket.create_connection((host, int(port)), timeout=PROBE_S) as connection:
            context.wrap_socket(connection, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (OSError, ValueError):  # the latter for a name that none can have
        pass
    return ""
