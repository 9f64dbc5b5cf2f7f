# SPDX-License-Identifier: BSD-3-Clause
"""The ``direct`` engine has the outputs of ``separable``, whatever tasks keep, share and change."""

from pathlib import Path

import objecttasks
import pytest
from enginecompare import PAIR, compare_engines
from lsst.pipe.base import PipelineTask
from objecttasks import MAKERS, write_object_tasks
from toycam import DAY, MakeRig

from ppdaemon.demo.tasks.associate import AssociateTask
from ppdaemon.messages import Process
from ppdaemon.middleware.direct.tasks import reads_once_puts_last
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures", "columnsclass")
pytestmark = pytest.mark.usefixtures("columns_class", "logging_of_a_node")


OFTEN = {"KeepAll", "Continue"}
"""Makers of which each keeps its object in another way than the rest of them: in the tests of each change."""
MAKER_PARAMS = [
    pytest.param(name, marks=() if name in OFTEN else pytest.mark.slow) for name in (m[:-4] for m in MAKERS)
]


@pytest.mark.parametrize("maker", MAKER_PARAMS)
@pytest.mark.parametrize("snaps", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_tasks_that_keep_or_change_their_objects_do_not_affect_other_tasks(
    rigs: MakeRig, maker: str, snaps: int
) -> None:
    compare_sums(rigs, maker, snaps, 1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("maker", [pytest.param("KeepAll", marks=pytest.mark.slow), "Continue"])
def test_tasks_do_not_affect_their_next_quantum(rigs: MakeRig, maker: str, processes: int) -> None:
    compare_sums(rigs, maker, 2, processes)


def compare_sums(rigs: MakeRig, maker: str, snaps: int, processes: int) -> None:
    """Compare what tasks after a maker have read in both engines."""
    result = compare_engines(
        rigs,
        PAIR,
        main=maker,
        write=write_object_tasks,
        snaps=tuple(range(1, snaps + 1)),
        settings={"processes": processes},
    )
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "partial outputs of vPartial")
    assert len([name for name, *_ in result.contents if name == "sums_last"]) == snaps


@pytest.mark.slow
@pytest.mark.parametrize("maker", ["KeepAll", pytest.param("Continue", marks=pytest.mark.slow)])
def test_datasets_that_are_not_exported_are_passed_on_as_they_were_put(rigs: MakeRig, maker: str) -> None:
    """Only sums of the inputs of tasks are exported here; a second attempt has the same ones."""
    reported = []
    for kind, attempts in (("separable", 1), ("direct", 2)):
        rig, worker = rigs(engine={"kind": kind, "no_return": []}, export={"types": ["sums_.*"]})
        write_object_tasks(rig)
        for attempt in range(1, attempts + 1):
            worker.prepare(rig.order(main=maker, before="", attempt=attempt))
            worker.ingest(rig.raw())
            done = worker.process(Process(exposures=(DAY * 100000 + 1,)))
            assert (done.outcome, done.engine) == (Outcome.SUCCEEDED, kind)
            files = read_manifest(Path(done.spool)).files
            reported.append(
                {
                    ref.datasetType.name: Path(done.spool, file.name).read_text()
                    for file in files
                    for ref in file.refs
                }
            )
            worker.reset()
    assert set(reported[0]) == {"sums_spoilt", "sums_twice", "sums_deferred", "sums_last"}
    assert reported == [reported[0]] * 3


def made(name: str) -> PipelineTask:
    """Return a task that was not constructed."""
    return object.__new__(getattr(objecttasks, name))


def test_a_task_with_run_quantum_of_the_base_class_reads_once_and_puts_last() -> None:
    assert reads_once_puts_last(made("KeepAllTask"))


def test_nothing_is_assumed_of_any_other_task() -> None:
    assert not reads_once_puts_last(made("ContinueTask"))
    assert not reads_once_puts_last(made("ContinueLateTask"))
    assert not reads_once_puts_last(object.__new__(AssociateTask))
    (unseen := made("KeepAllTask")).runQuantum = made("ContinueTask").runQuantum  # type: ignore[method-assign]
    assert not reads_once_puts_last(unseen)
