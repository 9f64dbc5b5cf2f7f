# SPDX-License-Identifier: BSD-3-Clause
"""Reads objects in stores, such as raw headers and sidecars, for the supervisor.

A separate process, because the supervisor imports no ``lsst.*`` and its threads must not wait
for networks. Started only where stores are configured.
"""

import os
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from ppdaemon import messages
from ppdaemon.errors import BadMessage
from ppdaemon.states import ExitCode
from ppdaemon.wire import decode, encode
from ppdaemon.worker.service import run_service

__all__ = ("main",)

AT_ONCE = 8
"""Objects read at the same time; the supervisor asks for no more."""

type _Readers = Mapping[messages.ReadKind, Callable[[str], dict[str, Any]]]


def _read(order: messages.ReadObject, readers: _Readers) -> messages.ObjectRead | messages.ObjectUnread:
    """Read one object."""

    def unread(why: Literal["missing", "bad", "unavailable"], error: Exception) -> messages.ObjectUnread:
        return messages.ObjectUnread(number=order.number, why=why, reason=str(error)[:1000])

    try:
        content = readers[order.what](order.uri)
    except FileNotFoundError as error:
        return unread("missing", error)
    except BadMessage as error:
        return unread("bad", error)
    except OSError as error:
        return unread("unavailable", error)
    return messages.ObjectRead(
        number=order.number, content={key: content[key] for key in messages.FACT_KEYS if key in content}
    )


def _serve(channel: socket.socket) -> None:
    """Answer orders until the supervisor closes its end."""
    from ppdaemon.middleware.raws.remote import list_folder, read_header, read_json

    readers: _Readers = {"json": read_json, "header": read_header, "list": list_folder}
    send_lock = threading.Lock()  # one channel, several threads

    def send(fact: messages.ReaderFact) -> None:
        data = encode(fact)
        if len(data) > messages.PACKET_LIMIT and isinstance(fact, messages.ObjectRead):
            data = encode(
                messages.ObjectUnread(
                    number=fact.number, why="bad", reason="the content is larger than a packet"
                )
            )
        with send_lock:
            channel.send(data)

    def read_and_send(order: messages.ReadObject) -> None:
        try:
            send(_read(order, readers))
        except BaseException:
            # Without an answer the supervisor would wait: end, and be replaced.
            traceback.print_exc()
            os._exit(ExitCode.SOFTWARE)

    send(messages.ReaderReady(pid=os.getpid()))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while packet := channel.recv(messages.PACKET_LIMIT):
            pool.submit(read_and_send, decode(packet, messages.READER_ORDERS, limit=messages.PACKET_LIMIT))


def main() -> None:
    """Run the reader."""
    run_service("reader", __doc__, _serve)


if __name__ == "__main__":
    main()
