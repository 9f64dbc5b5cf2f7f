# SPDX-License-Identifier: BSD-3-Clause
"""Where the tests keep their files: in memory, where a commit waits for no disk."""

import os
import shutil
from pathlib import Path

ROOM_BYTES = 4 << 30
"""A run that passes has some hundred megabytes at a time; one that fails keeps more."""


def _temporary() -> Path:
    shm = Path("/dev/shm")
    usable = os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > ROOM_BYTES
    return shm if usable else Path("/tmp")


TEMPORARY = Path(os.environ.setdefault("PPDAEMON_TEST_TEMPORARY", str(_temporary())))
"""The same for all processes of a run, however much is free when they start. A short path: a unix
socket's has at most 107 characters, which pytest's ``tmp_path`` can exceed.
"""
