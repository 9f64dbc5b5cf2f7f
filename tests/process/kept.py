# SPDX-License-Identifier: BSD-3-Clause
"""A small child process: ``python -m kept --channel N ... DEED``."""

import os
import socket
import sys
import time

READY = b'{"type": "ready", "pid": 1}'
ANSWER = b'{"type": "exported", "spools": [], "tai": 0.0, "datasets": 0}'


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[sys.argv.index("--channel") + 1]))
    deed = sys.argv[-1]
    if deed == "nonsense":
        channel.send(b'{"type": "ready", "pid": "one"}')
    elif deed != "mute":
        channel.send(READY)
        channel.recv(4096)
    if deed == "answer and exit":
        for _ in range(20):
            channel.send(ANSWER)
        os._exit(3)
    time.sleep(600)


main()
