# SPDX-License-Identifier: BSD-3-Clause
"""A visit after one whose task has left everything in the process, with a real Butler and real tasks."""

import os
import pickle
import shutil
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from enginecompare import VisitResult, assert_equal, run_worker, start_worker
from toycam import MakeRig
from toyscripted import ACTIONS

from ppdaemon.testing.leftovers import SEED, leave_all
from ppdaemon.worker.leftovers import Leftovers, ScratchFolder

pytest_plugins = ("toyfixtures",)


def visits(rigs: MakeRig, kind: str, scratch: Path, *, previous: str) -> tuple[VisitResult, float, list[str]]:
    """Process a visit after another one with the pipeline `previous`, if it is named, as a worker does.

    Return its result, a number that the process draws then, and the files in the scratch folder.
    """
    folder = ScratchFolder(scratch)
    folder.enter()
    rig, worker = start_worker(rigs, kind, action="leave")
    leftovers = Leftovers(["ppdaemon"])
    if previous:
        run_worker(rig, worker, kind, main=previous)
        assert leftovers.restore()[1] == []
        worker.reset()
        folder.enter()
        rig.reports.clear()
        for spool in worker._context.spool.iterdir():  # of the same visit
            shutil.rmtree(spool)
    result = run_worker(rig, worker, kind, main="Full", before="Known")
    return result, float(np.random.random()), sorted(path.name for path in scratch.iterdir())


def in_a_process(*arguments: Any, **options: Any) -> Any:
    """Call `visits` in a forked process: a failure must not leave everything in this one."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pytest's own threads
        pid = os.fork()
    if pid == 0:
        try:
            with os.fdopen(writing, "wb") as stream:
                pickle.dump(visits(*arguments, **options), stream)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read()
    os.waitpid(pid, 0)
    return pickle.loads(content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["direct", "separable"])
def test_another_pipelines_visit_is_as_in_a_new_worker(
    rigs: MakeRig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setitem(ACTIONS, "leave", leave_all)
    monkeypatch.chdir(tmp_path)
    new, _, _ = visits(rigs, kind, tmp_path / "new", previous="")
    after, number, files = in_a_process(rigs, kind, tmp_path / "after", previous="Scripted")
    assert_equal(new, after)
    logs = [content[0] for (name, _, _), content in after.contents.items() if name.endswith("_log")]
    assert any(messages for messages in logs)
    assert number not in np.random.RandomState(SEED).random(1000)
    assert files == []
