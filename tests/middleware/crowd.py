# SPDX-License-Identifier: BSD-3-Clause
"""Many workers of a host preload at the same moment, and its exporter exports.

They are forked from a process that has imported everything and opened
nothing. Each opens its own repo, waits for all others, prepares a visit, and
keeps what it has open until the last one is done, as workers that wait for
their images do. Called with the central repo, a scratch folder, the number of
workers and spools to export meanwhile, it prints JSON::

    PYTHONPATH=.:tests:tests/middleware python tests/middleware/crowd.py REPO FOLDER 205
"""

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import toycam
from toycam import DETECTORS, Rig

from ppdaemon.clock import Clock
from ppdaemon.middleware import work
from ppdaemon.middleware.butlerwork import ButlerWork
from ppdaemon.middleware.export.exporter import CentralExporter


class Gate:
    """A pipe that opens for all processes at once."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()

    def wait(self) -> None:
        """Return when the gate is open; called in the children."""
        os.close(self._in)
        os.read(self._out, 1)
        os.close(self._out)

    def open(self) -> None:
        """Let all through; called in the parent."""
        os.close(self._in)
        os.close(self._out)


class Crowd:
    """Processes that report by a pipe, one line of JSON each time."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        self._pids: list[int] = []

    def fork(self, do: Callable[[Callable[[dict[str, Any]], None]], None]) -> None:
        """Start a process that does something; what it raises is reported too."""
        pid = os.fork()
        if pid:
            self._pids.append(pid)
            return
        status = 1
        try:
            do(self._report)
            status = 0
        except BaseException:
            self._report({"error": traceback.format_exc(limit=-3)[-1500:]})
        finally:
            os._exit(status)

    def _report(self, words: dict[str, Any]) -> None:
        os.write(self._in, json.dumps(words).encode() + b"\n")  # below PIPE_BUF: never mixed

    def hear(self, count: int) -> list[dict[str, Any]]:
        """Return the next reports."""
        text = b""
        while text.count(b"\n") < count:
            text += os.read(self._out, 65536)
        return [json.loads(line) for line in text.splitlines()]

    def end(self) -> None:
        """Wait for all processes."""
        for pid in self._pids:
            os.waitpid(pid, 0)


def prepare_at_once(central: Path, folder: Path, workers: int, spools: list[Path]) -> dict[str, Any]:
    """Let workers prepare, and an exporter export; return what they report."""
    work.set_up_libraries()
    rig = Rig(folder / "template", folder / "template" / "ram", central)
    template = Crowd()
    template.fork(lambda report: _build(rig, report))
    if problems := [words for words in template.hear(1) if "error" in words]:
        return {"errors": problems}
    template.end()
    crowd, start, finish = Crowd(), Gate(), Gate()
    for number in range(workers):
        crowd.fork(lambda report, n=number: _prepare(central, folder, rig, n, (start, finish), report))
    if spools:
        crowd.fork(lambda report: _export(central, folder, spools, start, report))
    opened = crowd.hear(workers)
    began = time.monotonic()
    start.open()
    done = crowd.hear(workers + bool(spools)) if not any("error" in words for words in opened) else opened
    wall_s = time.monotonic() - began
    finish.open()
    crowd.end()
    prepared = sorted(words["seconds"] for words in done if "seconds" in words)
    return {
        "wall_s": round(wall_s, 2),
        "prepared": len(prepared),
        "median_s": prepared[len(prepared) // 2] if prepared else None,
        "slowest_s": prepared[-1] if prepared else None,
        "datasets": sorted({words["datasets"] for words in done if "datasets" in words}),
        "exports": [words["exports"] for words in done if "exports" in words],
        "errors": [words["error"] for words in done if "error" in words],
    }


def _build(rig: Rig, report: Callable[[dict[str, Any]], None]) -> None:
    work.build_template(rig.context)
    report({"built": True})


def _prepare(
    central: Path,
    folder: Path,
    template: Rig,
    number: int,
    gates: tuple[Gate, Gate],
    report: Callable[[dict[str, Any]], None],
) -> None:
    rig = Rig(folder / str(number), folder / "ram" / str(number), central)
    shutil.copytree(template.context.template, rig.context.template)
    assert rig.config.butler is not None
    worker = ButlerWork(rig.context, rig.config.butler, toycam.load_toy_camera)
    report({"opened": number})
    gates[0].wait()
    began = time.monotonic()
    prepared = worker.prepare(rig.order(number % DETECTORS, groupId=f"group-{number}", main="Short,Frame"))
    seconds = round(time.monotonic() - began, 3)
    report({"seconds": seconds, "datasets": prepared.detail["datasets"]})
    gates[1].wait()
    worker.close()


def _export(
    central: Path, folder: Path, spools: list[Path], start: Gate, report: Callable[[dict[str, Any]], None]
) -> None:
    exporter = CentralExporter(str(central), Clock(), "crowd", folder / "refused")
    start.wait()
    seconds = []
    for spool in spools:
        began = time.monotonic()
        exported = exporter.export([spool])
        assert exported.spools == (str(spool),), exported
        seconds.append(round(time.monotonic() - began, 3))
    report({"exports": seconds})


if __name__ == "__main__":
    repo, scratch, number, *paths = sys.argv[1:]
    outcome = prepare_at_once(Path(repo), Path(scratch), int(number), [Path(path) for path in paths])
    print(json.dumps(outcome))
