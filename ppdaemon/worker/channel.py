# SPDX-License-Identifier: BSD-3-Clause
"""The worker's end of its channel to the supervisor."""

import socket

import pydantic

from ppdaemon.errors import BadMessage
from ppdaemon.messages import PACKET_LIMIT
from ppdaemon.wire import encode, explain

__all__ = ("Channel",)


class Channel[Order]:
    """The worker's end: receives orders and sends facts, one JSON message per packet. `end` is a
    connected, blocking ``SOCK_SEQPACKET`` socket.
    """

    def __init__(self, end: socket.socket, orders: pydantic.TypeAdapter[Order]):
        self._end = end
        self._orders = orders
        # Once: for each packet the system would map new memory of this size, and unmap it again.
        self._packet = memoryview(bytearray(PACKET_LIMIT + 1))

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there is an order, or when the supervisor has
        closed its end.
        """
        return self._end.fileno()

    def send(self, fact: pydantic.BaseModel) -> None:
        """Send a fact that the supervisor expects; raise `OSError` if the supervisor has ended."""
        self._end.send(encode(fact))

    def receive(self) -> Order | None:
        """Wait for the next order; return `None` when the supervisor has closed its end. Raise
        `~ppdaemon.errors.BadMessage` if the packet is not a valid order.
        """
        size = self._end.recv_into(self._packet)
        if not size:
            return None
        if size > PACKET_LIMIT:
            raise BadMessage(f"an order of more than {PACKET_LIMIT} bytes", "size")
        try:
            # Without the checks of `ppdaemon.wire.parse_json`, which take twice as long as the rest: the
            # supervisor encodes models, which have passed them.
            return self._orders.validate_json(bytes(self._packet[:size]))
        except pydantic.ValidationError as error:
            raise BadMessage(explain(error), "field") from None
