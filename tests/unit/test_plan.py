# SPDX-License-Identifier: BSD-3-Clause
"""Plans: which detectors, the tables, the picture. How they are made is tested with the Butler."""

import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from ppdaemon.detectorlist import ranges
from ppdaemon.errors import BadMessage
from ppdaemon.node import app
from ppdaemon.pictures import CannotDraw
from ppdaemon.plan.models import (
    Choice,
    DetectorPlan,
    Plan,
    RuleTried,
    exit_code,
    find_fallbacks,
    requested_detectors,
)
from ppdaemon.plan.sky import _Frame, _projection, sky_png
from ppdaemon.plan.tables import plan_view
from ppdaemon.states import ExitCode

SERVED = {"DemoCam": tuple(range(9)), "LATISS": (0,)}
CORNERS = ((150.2, 2.1), (150.0, 2.1), (150.0, 2.3), (150.2, 2.3))
WIDE = ((150.21, 2.09), (149.99, 2.09), (149.99, 2.31), (150.21, 2.31))


def a_detector(detector: int = 4, **changes: Any) -> DetectorPlan:
    rule = RuleTried(number=2, conditions="survey BLOCK-365", unmet=(), pipelines=("/etc/ApPipe.yaml",))
    other = RuleTried(number=1, conditions="survey cwfs", unmet=("survey: 'BLOCK-365'",), pipelines=())
    usual: dict[str, Any] = {
        "detector": detector,
        "name": "R22_S11",
        "outcome": "would_run",
        "footprint": {"center": (150.1, 2.2), "corners": CORNERS, "padded": WIDE, "padding_arcsec": 36.0},
        "preprocessing": Choice(tried=(), pipelines=None),
        "main": Choice(tried=(other, rule), pipelines=rule.pipelines),
        "pipelines": [
            {
                "part": "main",
                "name": "ApPipe",
                "path": "/etc/ApPipe.yaml",
                "state": "first",
                "run": "DemoCam/prompt/output-2026-11-21/ApPipe/0a1b2c3d",
            },
            {
                "part": "main",
                "name": "Model",
                "path": "/etc/Model.yaml",
                "state": "dropped",
                "why": "lacks model",
            },
        ],
        "queries": [
            {
                "dataset_type": "template",
                "dimensions": ("skymap", "tract", "patch", "band"),
                "calibration": False,
                "datasets": 1,
                "size_bytes": 1_200_000,
                "query_ms": 12.3,
                "read_by": ("ApPipe",),
                "preloaded": True,
            }
        ],
        "datasets": [
            {
                "dataset_type": "template",
                "id": "0199-one",
                "data_id": {"skymap": "demo", "tract": 0, "patch": 12, "band": "r"},
                "run": "DemoCam/templates/2026-01-01/coadds",
                "file": "file:///srv/repo/templates.zip",
                "size_bytes": 1_200_000,
                "region": WIDE,
            },
            {
                "dataset_type": "bias",
                "id": f"0199-bias-{detector}",
                "data_id": {"instrument": "DemoCam", "detector": detector},
                "run": "DemoCam/calib/bias",
                "file": f"file:///srv/repo/bias-{detector}.fits",
                "size_bytes": 900,
                "validity": [
                    {"collection": "DemoCam/calib", "begin": "2026-01-01T00:00:00.000", "end": None}
                ],
            },
        ],
        "missing": [
            {
                "dataset_type": "model",
                "pipeline": "Model",
                "required": True,
                "sought": "in DemoCam/templates, templates, refcats, skymaps, DemoCam/calib",
            }
        ],
        "phases_ms": {"query_ms": 86.0},
        "notes": ("the filter is not known before the image",),
    }
    return DetectorPlan.model_validate(usual | changes)


def a_plan(*detectors: DetectorPlan, **changes: Any) -> Plan:
    usual: dict[str, Any] = {
        "node": "node1",
        "config": "/etc/ppdaemon/ppdaemon.yaml",
        "central": "/srv/ppdaemon/repo",
        "visit": {"groupId": "2026-11-22T03:25:16.951", "instrument": "DemoCam", "survey": "BLOCK-365"},
        "begin": "2026-11-22T03:25:16.000",
        "begin_from": "startTime",
        "valid_begin": "2026-11-22T03:24:16.000",
        "valid_end": "2026-11-22T03:28:26.000",
        "day_obs": 20261121,
        "boresight": (150.1, 2.2),
        "sky_angle_deg": 25.0,
        "chain": "DemoCam/prompt/output-2026-11-21",
        "detectors": detectors or (a_detector(),),
        "distinct_datasets": 2,
        "distinct_bytes": 1_200_900,
    }
    return Plan.model_validate(usual | changes)


def shown(plan: Plan, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    console.print(plan_view(plan))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("texts", "detectors"),
    [
        (["4"], (4,)),
        (["0-2,5", "1", "7"], (0, 1, 2, 5, 7)),
        (["all"], tuple(range(9))),
        (["8", "all"], (8, 0, 1, 2, 3, 4, 5, 6, 7)),
    ],
)
def test_detectors_are_numbers_ranges_or_all(texts: list[str], detectors: tuple[int, ...]) -> None:
    assert requested_detectors(texts, "DemoCam", SERVED) == detectors


def test_detectors_that_the_node_does_not_serve_are_refused() -> None:
    with pytest.raises(BadMessage, match=r"DemoCam 9-11: not served, node\.instruments has 0-8"):
        requested_detectors(["8-11"], "DemoCam", SERVED)
    with pytest.raises(BadMessage, match=r"'LSSTCam' is not served: node\.instruments has DemoCam"):
        requested_detectors(["8"], "LSSTCam", SERVED)
    with pytest.raises(ValueError, match="not a list of detectors"):
        requested_detectors(["four"], "DemoCam", SERVED)


@pytest.mark.parametrize(
    ("numbers", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 12), "0-2,12"), ((5, 4, 9, 8), "4-5,8-9")]
)
def test_numbers_are_written_as_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert ranges(numbers) == text


@pytest.mark.parametrize(
    ("detector", "changes", "code", "words"),
    [
        ("4", {"nimages": "two"}, ExitCode.DATA, "visit.json: nimages"),
        ("12", {}, ExitCode.DATA, "DemoCam 12: not served"),
        ("four", {}, ExitCode.USAGE, "not a list of detectors"),
        ("4", {"instrument": "LSSTCam"}, ExitCode.DATA, "'LSSTCam' is not served"),
        ("4", {"instrument": ""}, ExitCode.FAILED, "takes no image"),
        ("4", {}, ExitCode.CONFIG, "butler: missing key"),
    ],
)
def test_bad_arguments_are_refused_before_the_repo_is_queried(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    detector: str,
    changes: dict[str, Any],
    code: ExitCode,
    words: str,
) -> None:
    config = {
        "node": {
            "name": "n",
            "state_dir": "/proc/nowhere",  # need not be writable
            "ramdisk": "/proc/nowhere",
            "control": str(tmp_path / "control"),
            "instruments": {"DemoCam": "0-8"},
        },
        "arrivals": {"roots": [str(tmp_path)]},
        "pipelines": {"main": [{"pipelines": []}]},
    }
    if code is not ExitCode.CONFIG:
        config["butler"] = {"central": "/nowhere", "instrument_class": {"DemoCam": "a.B"}}
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "visit.json").write_text(json.dumps({"groupId": "g", "instrument": "DemoCam"} | changes))
    files = [f"--config={tmp_path / 'node.yaml'}", f"--visit={tmp_path / 'visit.json'}"]
    monkeypatch.setattr(sys, "argv", ["ppdaemon", "plan", *files, f"--detector={detector}"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == code
    output = capsys.readouterr()
    assert words in output.err
    assert output.out == ""


def test_the_exit_code_is_good_only_if_each_detector_gets_a_pipeline() -> None:
    ignored = a_detector(5, outcome="ignored", reason="no rule matches")
    assert exit_code(a_plan(a_detector())) is ExitCode.OK
    assert exit_code(a_plan(a_detector(), ignored)) is ExitCode.FAILED


def test_a_rule_falls_back_only_if_its_first_pipeline_is_dropped_for_all_its_detectors() -> None:
    first, fallback = a_detector().pipelines
    dropped = [
        first.model_copy(update={"state": "dropped", "why": "lacks model", "run": None}),
        fallback.model_copy(update={"state": "first"}),
    ]
    good, bad, other = (a_detector(1), a_detector(2, pipelines=dropped), a_detector(3, pipelines=dropped))
    assert list(find_fallbacks([good, bad])) == []
    assert list(find_fallbacks([])) == []
    assert list(find_fallbacks([a_detector(5, pipelines=())])) == []
    assert list(find_fallbacks([bad, other])) == [
        "pipelines.main, rule 2: the first pipeline, ApPipe, is dropped for detector 2-3: lacks model"
    ]
    plan = a_plan(bad, other, fallbacks=tuple(find_fallbacks([bad, other])))
    assert exit_code(plan) is ExitCode.FAILED
    assert exit_code(plan, allow_fallback=True) is ExitCode.OK
    assert "rule 2: the first pipeline, ApPipe" in " ".join(shown(plan, 80).split())


def test_json_of_a_plan_is_read_back() -> None:
    plan = a_plan()
    assert Plan.model_validate_json(plan.model_dump_json(by_alias=True)) == plan


@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_the_terminal_and_show_all_values(width: int) -> None:
    text = shown(a_plan(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    flat = "".join(text.split())
    for words in (
        "Detector 4 R22_S11: would run ApPipe",
        "survey: 'BLOCK-365'",
        "DemoCam/calib/bias; valid 2026-01-01 to ...",
        "(outputs)/ApPipe/0a1b2c3d",
        "lacks model",
        "1.2 MB",
        "required",
        "150.200000 +2.100000",
        "the filter is not known",
    ):
        assert "".join(words.split()) in flat, text


@pytest.mark.parametrize("width", [80, 120])
def test_each_of_several_detectors_has_one_line(width: int) -> None:
    none = a_detector(5, outcome="no_pipeline", reason="", pipelines=(), datasets=())
    ignored = a_detector(6, outcome="ignored", reason="no rule matches", pipelines=(), missing=())
    text = shown(a_plan(a_detector(), none, ignored), width)
    assert max(map(len, text.splitlines())) <= width
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert "would run" in lines["4"]
    assert "no pipeline" in lines["5"]
    assert "model" in lines["5"]
    assert "no rule matches" in lines["6"]
    assert "2 distinct datasets, 1.2 MB" in text
    assert "4-6" in text


def test_control_characters_are_not_sent_to_the_terminal() -> None:
    assert "\x1b" not in shown(a_plan(a_detector(notes=("evil \x1b[2J words",))), 80)


def test_the_picture_is_a_square_png(tmp_path: Path) -> None:
    sky_png(a_plan(a_detector(), a_detector(5)), tmp_path / "sky.png")
    data = (tmp_path / "sky.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert width == height


def test_a_picture_that_cannot_be_drawn_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotDraw, match="no footprint"):
        sky_png(a_plan(a_detector(footprint=None)), tmp_path / "sky.png")
    with pytest.raises(CannotDraw, match="nowhere"):
        sky_png(a_plan(), tmp_path / "nowhere/sky.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(CannotDraw, match=r"pip install 'ppdaemon\[demo\]'"):
        sky_png(a_plan(), tmp_path / "sky.png")


@pytest.mark.parametrize("center", [(0.0, 0.0), (359.95, -30.0), (10.0, 90.0), (150.1, -89.99)])
def test_the_projection_keeps_distances_from_the_center(center: tuple[float, float]) -> None:
    project = _projection(center)
    assert project(center) == pytest.approx((0.0, 0.0), abs=1e-12)
    dec = center[1] - 0.5 if center[1] > 0 else center[1] + 0.5
    assert project((center[0], dec)) == pytest.approx((0.0, dec - center[1]), abs=1e-12)
    assert project((center[0] + 360.0, dec)) == pytest.approx((0.0, dec - center[1]), abs=1e-9)


def test_a_polygon_is_clipped_to_the_frame() -> None:
    square = [(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)]
    assert sorted(_Frame(-1.0, 1.0, 2.0).clip(square)) == [(0.0, 0.0), (0.0, 2.0), (1.0, 0.0), (1.0, 2.0)]
    assert _Frame(9.0, 9.0, 1.0).clip(square) == []
    assert _Frame(1.0, 1.0, 3.0).clip(square) == square
