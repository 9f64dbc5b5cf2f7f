# SPDX-License-Identifier: BSD-3-Clause
"""How a simulated telescope talks to the relay: one event, one answer."""

import json
from types import TracebackType
from typing import Any, Self

import zmq

from ppdaemon.errors import BadMessage, Refused, Unavailable

__all__ = ("RelayClient",)


class RelayClient:
    """Submits events to the relay, one at a time.

    Parameters
    ----------
    address : `str`
        The relay's submit socket, ``tcp://127.0.0.1:5570``.
    timeout_s : `float`, optional
        How long to wait for an answer.
    """

    def __init__(self, address: str, timeout_s: float = 5.0):
        self._address = address
        self._timeout_s = timeout_s
        self._context = zmq.Context()

    def submit(self, event: dict[str, Any]) -> dict[str, Any]:
        """Send an event and return the relay's reply.

        Returns
        -------
        reply : `dict`
            With ``status`` ``accepted`` or ``duplicate``.

        Raises
        ------
        Unavailable
            Raised where the relay does not answer in time.
        Refused
            Raised where it rejects or ignores the event.
        BadMessage
            Raised where its answer is not understood.
        """
        # A REQ that waits in vain cannot send again: a new one for each event.
        with self._context.socket(zmq.REQ) as socket:
            socket.linger = 0
            try:
                socket.connect(self._address)
            except zmq.ZMQError as error:
                raise Unavailable(f"relay: cannot connect to {self._address!r}: {error}") from None
            socket.send_json(event)
            if not socket.poll(int(self._timeout_s * 1000)):
                raise Unavailable(f"the relay at {self._address} did not answer within {self._timeout_s:g} s")
            return self._check(socket.recv())

    def _check(self, answer: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(answer)
        except ValueError:
            reply = None
        if not isinstance(reply, dict) or "status" not in reply:
            raise BadMessage(
                f"the relay at {self._address} answered {answer[:100]!r}: no object with a status"
            )
        if reply["status"] not in ("accepted", "duplicate"):
            raise Refused(f"the relay says {reply['status']}: {reply.get('reason', 'no reason given')}")
        return reply

    def close(self) -> None:
        """Close."""
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
