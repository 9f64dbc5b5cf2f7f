# SPDX-License-Identifier: BSD-3-Clause
"""A pipeline with the shape of the field's alert pipeline is run by ``direct``, with equal outputs."""

import os
import pickle
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from dimensiontasks import make_tracts
from enginecompare import COMPARED, PAIR, VisitResult, assert_equal, compare_engines, process_visit
from fieldtasks import PREPROCESSING, PROMPT, make_field, write_field
from once import made_once
from toycam import DEC, RA, MakeRig

from ppdaemon.errors import VisitFailed
from ppdaemon.states import Outcome, Stage

pytest_plugins = ("toyfixtures",)

# A visit has 16 quanta; with two engines on busy cores that takes more than the usual limit.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.usefixtures("logging_of_a_node")]


@pytest.fixture(scope="session")
def field(tmp_path_factory: pytest.TempPathFactory, toy_central: Path) -> Path:
    """Return a central repo with two tracts and all that the field's pipeline reads."""

    def make(root: Path) -> None:
        make_field(make_tracts(toy_central, root.with_name("field-tracts")), root)

    return made_once(tmp_path_factory, "field-central", make)


@pytest.fixture
def visit(field: Path, tmp_path: Path) -> dict[str, Any]:
    """Return the options of a visit with the field's pipelines."""
    return {
        "central": field,
        "write": write_field,
        "settings": {"no_return": ["associateApdb"]},
        "associateApdb:apdb": str(tmp_path / "apdb.db"),
    }


PATH = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
PIPELINES = {"main": "FieldPrompt", "before": "FieldPreload"}


@COMPARED
def test_the_fields_pipeline_is_run_by_direct_with_the_outputs_of_the_other_engines(
    rigs: MakeRig, visit: dict[str, Any], engines: tuple[str, str]
) -> None:
    """That `direct` itself has run it is checked with each visit."""
    result = compare_engines(rigs, engines, **visit, **PIPELINES)
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "")
    assert {f"{label}_metadata" for label in (*PREPROCESSING, *PROMPT)} <= result.types
    assert {"template_detector", "dia_source_apdb", "apdb_marker", "alerts"} <= result.types
    measured = [name for name, *_ in result.contents if name == "dia_forced_source_unstandardized"]
    assert len(measured) == 2, "one for each tract"
    assert result.reports[:2] == [Stage.FIRST_TASK, "no return: associateApdb"]


def process_at_once(kind: str, root: Path, *files: Path) -> list[VisitResult]:
    """Process two detectors of a visit, each in its own process; see `fieldvisit` for the files."""
    script = Path(__file__).with_name("fieldvisit.py")
    results = [root / f"{kind}{detector}.pickle" for detector in (1, 2)]
    commands = [
        [sys.executable, script, kind, str(detector), root / f"{kind}{detector}", *files, result]
        for detector, result in enumerate(results, 1)
    ]
    with ExitStack() as started:
        processes = [
            started.enter_context(subprocess.Popen(each, env=os.environ | {"PYTHONPATH": PATH}))
            for each in commands
        ]
        for process in processes:
            started.callback(process.kill)
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [pickle.loads(result.read_bytes()) for result in results]


def test_two_detectors_at_once_have_equal_outputs(field: Path, toy_template: Path, tmp_path: Path) -> None:
    """Both write to one alert database."""
    results, stored = {}, {}
    apdb = tmp_path / "apdb.db"
    for kind in PAIR:
        results[kind] = process_at_once(kind, tmp_path, field, toy_template, apdb)
        with closing(sqlite3.connect(apdb)) as database:
            stored[kind] = sorted(database.execute("SELECT * FROM DiaSource"))
        apdb.unlink()
    for separable, direct in zip(*results.values(), strict=True):
        assert_equal(separable, direct)
    assert stored["separable"] == stored["direct"]
    assert {detector for _, detector, *_ in stored["direct"]} == {1, 2}
    assert [each.outcome for each in results["direct"]] == [Outcome.SUCCEEDED] * 2


@pytest.mark.parametrize("processes", [1, 2])
def test_two_snaps_of_one_visit_are_the_same_in_both_engines(
    rigs: MakeRig, visit: dict[str, Any], processes: int
) -> None:
    visit["settings"] |= {"processes": processes}
    grouped = {"visits": {"ToyCam": "by-group"}}
    result = compare_engines(rigs, PAIR, **visit, **PIPELINES, snaps=(1, 2), butler=grouped)
    images = [name for name, *_ in result.contents if name == "post_isr_image"]
    alerts = [name for name, *_ in result.contents if name == "alerts"]
    assert (len(images), len(alerts)) == (2, 1)


def test_an_image_beside_the_announced_position_has_the_same_graph_in_both_engines(
    rigs: MakeRig, visit: dict[str, Any]
) -> None:
    """No patch that was preloaded overlaps it, so that the query has no row at all."""
    errors, away = [], {"sal": {"position": [RA - 0.7, DEC]}, "header": {"RA": RA - 1.5}}
    for kind in PAIR:
        with pytest.raises(VisitFailed, match="its graph is empty") as caught:
            process_visit(rigs, kind, **visit, **PIPELINES, **away)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_datasets_that_do_not_fit_into_memory_are_passed_through_files(
    rigs: MakeRig, visit: dict[str, Any]
) -> None:
    visit["settings"] |= {"memory_max": 1, "read_ahead_max": 0}
    result = compare_engines(rigs, PAIR, **visit, **PIPELINES)
    assert result.outcome == Outcome.SUCCEEDED
