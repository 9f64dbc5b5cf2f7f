# SPDX-License-Identifier: BSD-3-Clause
"""The worker's end of its channel to the supervisor."""

import socket

import pydantic

from ppdaemon.errors import BadMessage
from ppdaemon.messages import PACKET_LIMIT
from ppdaemon.wire import decode, encode

__all__ = ("Channel",)


class Channel[Order]:
    """The worker's end: receives orders and sends facts, one JSON message per packet. `end` is a
    connected, blocking ``SOCK_SEQPACKET`` socket.
    """

    def __init__(self, end: socket.socket, orders: pydantic.TypeAdapter[Order]):
        self._end = end
        self._orders = orders

    def send(self, fact: pydantic.BaseModel) -> None:
        """Send a fact that the supervisor expects; raise `OSError` if the supervisor has ended."""
        self._end.send(encode(fact))

    def receive(self) -> Order | None:
        """Wait for the next order; return `None` when the supervisor has closed its end. Raise
        `~ppdaemon.errors.BadMessage` if the packet is not a valid order.
        """
        packet = self._end.recv(PACKET_LIMIT + 1)
        if not packet:
            return None
        if len(packet) > PACKET_LIMIT:
            raise BadMessage(f"an order of more than {PACKET_LIMIT} bytes", "size")
        return decode(packet, self._orders, limit=PACKET_LIMIT)
