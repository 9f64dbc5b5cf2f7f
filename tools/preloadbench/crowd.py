# SPDX-License-Identifier: BSD-3-Clause
"""Workers of one host that prepare the same visit at the same moment. A program of its own, so that it can
run with the ``ppdaemon`` of another build; prints the measurements of each worker as JSON.
"""

import gc
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sqlalchemy
from lsst.daf.butler.queries.expressions.parser.parser import parse_expression

from ppdaemon.middleware.pipelines.graph import PipelineLibrary
from ppdaemon.middleware.work import set_up_libraries
from preloadbench.worker import Host, build_template, run_worker


class _Answers:
    """Takes the measurements of a worker, and adds the number of its queries."""

    def __init__(self, end: Connection, queries: Counter[str]):
        self._end = end
        self._queries = queries

    def send(self, samples: list[dict[str, Any]]) -> None:
        """Send the first visit's measurements: the cold ones."""
        self._end.send(samples[0] | self._queries)


def count_queries(central: Path, queries: Counter[str]) -> None:
    """Count the statements that the central repo gets from this process, and the connections to a server."""

    def count(connection: sqlalchemy.Connection, *_: object) -> None:
        url = connection.engine.url
        is_server = url.get_backend_name() != "sqlite"
        queries["queries"] += is_server or central in Path(url.database or "").parents

    def connected(connection: object, _: object) -> None:
        queries["connections"] += hasattr(connection, "dsn")  # of a server

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", connected)


def run_at_once(tasks: Sequence[Callable[[Callable[[], None], Connection], None]]) -> list[Any]:
    """Run functions in forked processes; return what each sends.

    Each calls its first argument when it is set up, which returns when all are.
    """
    gate, opened = os.pipe()
    ends = []
    for task in tasks:
        receiving, sending = multiprocessing.Pipe(duplex=False)
        if os.fork():
            sending.close()
            ends.append(receiving)
            continue
        status = 1
        try:
            os.close(opened)

            def wait(sending: Connection = sending) -> None:
                sending.send("ready")
                os.read(gate, 1)  # returns when all copies of the other end are closed

            task(wait, sending)
            status = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)
    for end in ends:
        end.recv()
    os.close(opened)
    sent = [end.recv() for end in ends]
    for _ in ends:
        os.wait()
    return sent


def run_crowd(host: Host, cache: str, detectors: Sequence[int]) -> list[dict[str, Any]]:
    """Run a worker for each detector, forked as by the zygote: what that has done already is not measured."""
    importlib.import_module("pyarrow.dataset")
    parse_expression("band IN (allowed)")  # the first one generates the parser
    library = PipelineLibrary({})
    library.load(host.pipelines)
    gc.collect()
    gc.freeze()

    def work(detector: int, wait: Callable[[], None], end: Connection) -> None:
        queries = Counter({"queries": 0, "connections": 0})
        count_queries(host.central, queries)
        answers: Any = _Answers(end, queries)
        run_worker(host, cache, detector, [0.0], wait, answers, library)

    return run_at_once([partial(work, detector) for detector in detectors])


def make_template(host: Host) -> None:
    """Make the repo that the workers of this build copy, in a process of its own."""
    if not host.template.exists():
        if not (child := os.fork()):
            status = 1
            try:
                build_template(host)
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(status)
        if os.waitpid(child, 0)[1]:
            sys.exit("the template cannot be made")


def copy_at_once(image: Path, folder: Path, count: int) -> list[dict[str, Any]]:
    """Copy an image so many times, in as many processes as there are cores, and do nothing else."""
    folder.mkdir()

    def copy(first: int, wait: Callable[[], None], end: Connection) -> None:
        wait()
        start, start_cpu = time.perf_counter(), time.process_time()
        for number in range(first, count, cores):
            shutil.copyfile(image, folder / str(number))
        spent = time.perf_counter() - start, time.process_time() - start_cpu
        end.send({"preload_ms": spent[0] * 1e3, "cpu_ms": spent[1] * 1e3})

    cores = os.cpu_count() or 1
    return run_at_once([partial(copy, first) for first in range(cores)])


def main() -> None:
    """Read what to do from the command line: folders, pipelines, detectors; or images to copy."""
    order = json.loads(sys.argv[1])
    set_up_libraries()
    host = Host(Path(order["central"]), Path(order["ramdisk"]), tuple(order["pipelines"]), order["camera"])
    if "copies" in order:
        image = host.central / "files" / "image"
        found = copy_at_once(image, host.ramdisk / order["cache"], order["copies"])
    else:
        make_template(host)
        found = run_crowd(host, order["cache"], order["detectors"])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
