# SPDX-License-Identifier: BSD-3-Clause
"""The worker's end of its channel to the supervisor."""

import socket

import pydantic

from ppdaemon.errors import BadMessage
from ppdaemon.messages import PACKET_LIMIT
from ppdaemon.wire import decode, encode

__all__ = ("Channel",)


class Channel[Order]:
    """Orders in, facts out; one JSON message per packet.

    Parameters
    ----------
    end : `socket.socket`
        A connected ``SOCK_SEQPACKET`` socket, blocking.
    orders : `pydantic.TypeAdapter`
        What may be heard.
    """

    def __init__(self, end: socket.socket, orders: pydantic.TypeAdapter[Order]):
        self._end = end
        self._orders = orders

    def send(self, fact: pydantic.BaseModel) -> None:
        """Tell the supervisor; a gone supervisor raises `OSError`.

        Parameters
        ----------
        fact : `pydantic.BaseModel`
            One of the messages that the supervisor expects here.
        """
        self._end.send(encode(fact))

    def receive(self) -> Order | None:
        """Wait for the next order.

        Returns
        -------
        order : `object` or `None`
            `None` when the supervisor has closed its end.

        Raises
        ------
        ppdaemon.errors.BadMessage
            Raised if the packet is no order.
        """
        packet = self._end.recv(PACKET_LIMIT + 1)
        if not packet:
            return None
        if len(packet) > PACKET_LIMIT:
            raise BadMessage(f"an order of more than {PACKET_LIMIT} bytes", "size")
        return decode(packet, self._orders, limit=PACKET_LIMIT)
