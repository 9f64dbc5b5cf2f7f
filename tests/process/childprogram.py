# SPDX-License-Identifier: BSD-3-Clause
"""A small child process: ``python -m childprogram --channel N ... FAULT``."""

import os
import socket
import sys
import time

READY = b'{"type": "ready", "pid": 1}'
ANSWER = b'{"type": "exported", "spools": [], "tai": 0.0, "datasets": 0}'


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[sys.argv.index("--channel") + 1]))
    fault = sys.argv[-1]
    if fault == "invalid":
        channel.send(b'{"type": "ready", "pid": "one"}')
    elif fault != "silent":
        channel.send(READY)
        channel.recv(4096)
    if fault == "answer and exit":
        for _ in range(20):
            channel.send(ANSWER)
        os._exit(3)
    time.sleep(600)


main()
