# SPDX-License-Identifier: BSD-3-Clause
"""Another host's exporter, as a process that can be stopped in the middle of its transaction.

Arguments: the central repo, a quarantine folder, ``hold`` or ``pass``, and
spools. It prints ``open`` and exports when it reads a line. With ``hold``, it
does everything except the commit, prints ``holding``, and continues with the
next line. At the end it prints what it has exported, as JSON.
"""

import sys
from pathlib import Path
from typing import Any

from ppdaemon.clock import Clock
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.register import Registrar


def hold_back() -> None:
    """Make the next transactions wait before their commit."""
    ingest = Registrar._ingest

    def hold(registrar: Any, butler: Any, *args: Any) -> None:
        with butler.transaction():
            ingest(registrar, butler, *args)
            print("holding", flush=True)
            sys.stdin.readline()

    Registrar._ingest = hold  # type: ignore[method-assign]


if __name__ == "__main__":
    repo, refused, manner, *spools = sys.argv[1:]
    if manner == "hold":
        hold_back()
    exporter = CentralExporter(repo, Clock(), f"rival-{Path(refused).name}", Path(refused))
    exporter._open()
    print("open", flush=True)
    sys.stdin.readline()
    print(exporter.export([Path(spool) for spool in spools]).model_dump_json(), flush=True)
    exporter.close()
