# SPDX-License-Identifier: BSD-3-Clause
"""The quanta of ``direct`` are those of the graph builder, whatever the dimensions of tasks and datasets."""

from pathlib import Path
from typing import Any

import pytest
from dimensiontasks import make_tracts, write_dimensions
from enginecompare import PAIR, compare_engines, process_visit
from toycam import DEC, MakeRig

from ppdaemon.errors import VisitFailed
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures",)
pytestmark = pytest.mark.usefixtures("logging_of_a_node")


@pytest.fixture(scope="module")
def tracts(tmp_path_factory: pytest.TempPathFactory, toy_central: Path) -> Path:
    return make_tracts(toy_central, tmp_path_factory.mktemp("tracts") / "central")


def _more(name: str, made: dict[str, int]) -> Any:
    """Return a case whose branches the cases of ``make test`` have, too, in other combinations."""
    return pytest.param(name, made, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("skymap", {"bySkymap": 1}),
        _more("tractFinds", {"tractFinds": 2}),
        _more("pixels", {"byPixel": 4, "overPixels": 1, "manyPixels": 8}),
        _more("pixelPatches", {"pixelPatch": 4}),
        _more("shards", {"toVisit": 1, "byShard": 2}),
        _more("patchShards", {"patchShard": 14}),
        _more("days", {"byDay": 1, "onlyDay": 1}),
        _more("tracts", {"byTract": 2, "afterTract": 2, "overTracts": 1}),
        _more("patches", {"byPatch": 5}),
        _more("perTract", {"perTract": 2, "tractOnly": 2}),
        _more("patchesOfTract", {"byTract": 2, "patchesOfTract": 5}),
        _more("asksByTract", {"asksByTract": 2}),
        _more("exposureMap", {"exposureMap": 1}),
        _more("noDetector", {"noDetector": 2}),
        _more("noVisit", {"noVisit": 5}),
        _more("noRegion", {"noRegion": 1}),
        _more("sameDetector", {"byPixel": 4, "alsoPixel": 12}),
        _more("patchPixels", {"byPixel": 4, "patchPixel": 41}),
        _more("laterShards", {"toVisit": 1, "laterShard": 2}),
        _more("groups", {"byGroup": 1, "visitOfGroup": 1}),
    ],
)
def test_the_quanta_are_those_of_the_graph_builder(
    rigs: MakeRig, tracts: Path, name: str, made: dict[str, int]
) -> None:
    result = compare_engines(rigs, PAIR, main=name, before="Known", write=write_dimensions, central=tracts)
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "")
    outputs = [type_name.removeprefix("made_") for type_name, *_ in result.contents]
    assert {label: outputs.count(label) for label in made} == made


@pytest.mark.slow
def test_a_tract_across_ra_0_is_found(rigs: MakeRig, tracts: Path) -> None:
    for ra in (0.05, 359.95):
        sal, header = {"position": [ra, DEC]}, {"RA": ra}
        result = compare_engines(
            rigs, PAIR, main="edgeTracts", write=write_dimensions, central=tracts, sal=sal, header=header
        )
        assert len([name for name, *_ in result.contents if name == "made_edgeTract"]) == 1


@pytest.mark.slow
def test_a_failed_quantum_stops_only_the_quanta_that_depend_on_it(rigs: MakeRig, tracts: Path) -> None:
    result = compare_engines(
        rigs, PAIR, main="tracts", write=write_dimensions, central=tracts, **{"byTract:fail": "tract: 0"}
    )
    assert (result.outcome, result.failed) == (Outcome.FAILED, "task byTract: RuntimeError: no stars")
    (tract,) = [data_id for name, data_id, _ in result.contents if name == "made_afterTract"]
    assert "('tract', 1)" in tract
    assert "made_overTracts" not in result.types


@pytest.mark.slow
def test_a_quantum_without_work_leaves_its_output_out(rigs: MakeRig, tracts: Path) -> None:
    result = compare_engines(
        rigs, PAIR, main="tracts", write=write_dimensions, central=tracts, **{"byTract:idle": "tract: 1"}
    )
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "no work for byTract, afterTract")
    (listed,) = [content for (name, *_), content in result.contents.items() if name == "made_overTracts"]
    assert "tract: 0" in listed
    assert "tract: 1" not in listed


@pytest.mark.slow
def test_two_snaps_in_two_processes_have_the_quanta_of_the_graph_builder(rigs: MakeRig, tracts: Path) -> None:
    result = compare_engines(
        rigs,
        PAIR,
        main="tracts",
        write=write_dimensions,
        central=tracts,
        snaps=(1, 2),
        settings={"processes": 2},
    )
    assert len([name for name, *_ in result.contents if name == "made_afterTract"]) == 4


NOWHERE = {"sal": {"coordinateSystem": 1}, "header": {"RA": None, "DEC": None, "ROTPA": None}}
"""A visit without a position on the sky."""


@pytest.mark.parametrize(
    ("name", "reason", "position"),
    [
        ("findsTwo", "cannot be built: InvalidQueryError", {}),
        pytest.param("shardPatches", "cannot be built: InvalidQueryError", {}, marks=pytest.mark.slow),
        ("rawPixels", "cannot be built: LookupError", NOWHERE),
        pytest.param("edgeTracts", "its graph is empty", NOWHERE, marks=pytest.mark.slow),
    ],
)
def test_what_the_graph_builder_refuses_is_refused_with_the_same_error(
    rigs: MakeRig, tracts: Path, name: str, reason: str, position: dict[str, Any]
) -> None:
    errors = []
    for kind in PAIR:
        with pytest.raises(VisitFailed, match=reason) as caught:
            process_visit(rigs, kind, main=name, write=write_dimensions, central=tracts, **position)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.slow
def test_pixels_of_two_sizes_are_left_to_separable(
    rigs: MakeRig, tracts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    visit = {"main": "visitPixels", "write": write_dimensions, "central": tracts}
    first = process_visit(rigs, "separable", **visit)
    assert process_visit(rigs, "direct", ran_by="separable", **visit) == first
    assert "dimension healpix6, healpix8 of several regions, or of none" in caplog.text
