# SPDX-License-Identifier: BSD-3-Clause
"""The path of today: visits over the relay's submit socket, notices of a storage layer from a PUB socket."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import zmq

from sourcesbench.site import Send

SUBSCRIBER_S = 30.0


@contextmanager
def publishing(address: str) -> Iterator[Send]:
    """Bind a publisher, and give a function that sends notices; its node may subscribe later."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.bind(address)
        subscribed = False

        def send(notices: Mapping[int, bytes], within_s: float) -> Mapping[int, float]:
            nonlocal subscribed
            if not subscribed:
                assert socket.poll(SUBSCRIBER_S * 1000), f"nobody has subscribed to {address}"
                subscribed = True
            sent = {}
            for detector in pace(notices, within_s):
                sent[detector] = time.monotonic()
                socket.send(notices[detector])
            return sent

        yield send


def pace(notices: Mapping[int, bytes], within_s: float) -> Iterator[int]:
    """Yield the detectors evenly within some seconds."""
    began = time.monotonic()
    for number, detector in enumerate(notices):
        time.sleep(max(0.0, began + number * within_s / len(notices) - time.monotonic()))
        yield detector
