# SPDX-License-Identifier: BSD-3-Clause
"""Workers of one host that prepare the same visit at the same moment. A program of its own, so that it can
run with the ``ppdaemon`` of another build; prints the measurements of each worker as JSON.
"""

import gc
import json
import multiprocessing
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ppdaemon.middleware.work import set_up_libraries
from preloadbench.node import node_config, running_asker, warm_up
from preloadbench.queries import QueryCounts
from preloadbench.worker import Host, build_template, run_worker


class _Answers:
    """Takes the measurements of a worker, and adds the number of its queries."""

    def __init__(self, end: Connection, queries: QueryCounts):
        self._end = end
        self._queries = queries

    def send(self, samples: list[dict[str, Any]]) -> None:
        """Send the first visit's measurements: the cold ones."""
        self._end.send(samples[0] | self._queries.values())


def run_at_once(
    tasks: Sequence[Callable[[Callable[[], None], Connection], None]],
    begin: Callable[[], None] = lambda: None,
) -> list[Any]:
    """Run functions in forked processes; return what each sends.

    Each calls its first argument when it is set up, which returns when all are, after `begin` was called.
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
    begin()
    os.close(opened)
    sent = [end.recv() for end in ends]
    for _ in ends:
        os.wait()
    return sent


def run_crowd(host: Host, cache: str, detectors: Sequence[int]) -> dict[str, Any]:
    """Run a worker for each detector, forked as by the zygote: what that has done already is not measured."""
    library = warm_up(host)
    gc.collect()
    gc.freeze()

    def work(detector: int, wait: Callable[[], None], end: Connection) -> None:
        os.nice(node_config(host).workers.nice)
        answers: Any = _Answers(end, QueryCounts(host.central))
        run_worker(host, cache, detector, [0.0], wait, answers, library)

    with running_asker(host, library) as asker:
        workers = run_at_once([partial(work, detector) for detector in detectors], asker.begin)
        return {"workers": workers, "asker": asker.measure()}


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
        found = {"workers": copy_at_once(image, host.ramdisk / order["cache"], order["copies"])}
    else:
        make_template(host)
        found = run_crowd(host, order["cache"], order["detectors"])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
