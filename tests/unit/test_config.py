# SPDX-License-Identifier: BSD-3-Clause
"""The configuration: valid values, and the message of each refusal."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from ppdaemon.config import NodeConfig, load_node
from ppdaemon.configfile import ConfigFile, exceeds_unit
from ppdaemon.detectorlist import parse_detector_list
from ppdaemon.errors import ConfigError
from ppdaemon.relay.config import load_relay
from ppdaemon.states import ExitCode


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    """Give the least configuration of a node, with its files in place."""
    (tmp_path / "ApPipe.yaml").touch()
    return {
        "node": {
            "name": "n1",
            "state_dir": str(tmp_path / "state"),
            "ramdisk": str(tmp_path),
            "control": str(tmp_path / "control"),
            "instruments": {"DemoCam": "0-8"},
        },
        "arrivals": {"roots": [str(tmp_path / "raw")]},
        "butler": {"central": "repo", "instrument_class": {"DemoCam": "demo.DemoCam"}},
        "pipelines": {"main": [{"pipelines": [str(tmp_path / "ApPipe.yaml")]}]},
    }


def write(folder: Path, document: Any) -> Path:
    path = folder / "c.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False))
    return path


def set_at(document: dict[str, Any], place: str, value: Any) -> None:
    *steps, last = place.split(".")
    for step in steps:
        document = document.setdefault(step, {})
    document[last] = value


def problems(folder: Path, document: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_node(write(folder, document), {})
    assert caught.value.exit_code == ExitCode.CONFIG
    return caught.value.problems


def test_the_least_configuration_has_all_defaults(node: dict[str, Any], tmp_path: Path) -> None:
    config = load_node(write(tmp_path, node), {})
    assert config.workers.min == 2
    assert config.engine.kind == "direct"
    assert config.node.instruments["DemoCam"] == tuple(range(9))


def test_variables_are_replaced(node: dict[str, Any], tmp_path: Path) -> None:
    node["node"]["name"] = "${HOST_NAME}"
    config = load_node(write(tmp_path, node), {"HOST_NAME": "n7"})
    assert config.node.name == "n7"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("node.nmae", "x", "node.nmae: unknown key"),
        ("node.name", "two words", "node.name: "),
        ("workers.max", 0, "workers.max: "),
        ("workers.min", 99, "workers: min is more than max"),
        (
            "workers.environment",
            {"OMP_NUM_THREADS": "4"},
            "workers.environment.OMP_NUM_THREADS: ppdaemon sets OMP_NUM_THREADS=1, this value would be lost; "
            "see workers.threads",
        ),
        (
            "workers.environment",
            {"ORT_DISABLE_TELEMETRY": "0", "SPT_NOENV": "1"},
            "workers.environment.ORT_DISABLE_TELEMETRY: ppdaemon sets ORT_DISABLE_TELEMETRY=1, this value",
        ),
        (
            "workers.memory.soft",
            "8gb",
            "'8gb' is not a size; units are B, kB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB",
        ),
        ("workers.memory.soft", "9GB", "soft is more than hard"),
        ("workers.times.run_s", 0, "workers.times.run_s: "),
        ("workers.times.run_s", ".nan", "workers.times.run_s: "),
        ("node.instruments.DemoCam", "0-x", "write for instance 0-8,12"),
        ("node.instruments.DemoCam", "8-0", "'8-0' is not a range"),
        ("node.instruments.DemoCam", "1,1", "a detector is listed twice"),
        ("node.instruments.LATISS", "0", "butler.instrument_class: no entry for LATISS"),
        ("relay.address", "localhost:5571", "relay.address: "),
        ("pipelines.main", [], "pipelines.main: "),
        ("export.types", ["("], "'(' is not a regular expression"),
        ("export.types", ".*", "export.types: Input should be a valid list"),
        ("engine.kind", "magic", "engine.kind: "),
        ("engine.apdb", {"DemoCam": "apdb.yaml"}, "apdb_tasks: missing key"),
        ("engine.apdb_tasks", ["associate"], "apdb_tasks.0: associate must be listed in no_return too"),
        ("arrivals.roots", ["raw"], "arrivals.roots.0.path: 'raw' is not an absolute path"),
        ("arrivals.roots", ["/"], "arrivals.roots.0.path: / cannot be a raw root, use a folder"),
        ("arrivals.roots", ["/raw", "/raw/"], "arrivals.roots: a root is listed twice"),
        ("arrivals.roots", [], "arrivals: roots and remote are both empty"),
        ("arrivals.roots", [{"path": "/raw", "wach": "poll"}], "arrivals.roots.0.wach: unknown key"),
        ("arrivals.watch", "sometimes", "arrivals.watch: Input should be 'auto', 'inotify' or 'poll'"),
        ("arrivals.layout", "lssst", "arrivals.layout: Input should be 'lsst', 'imsim' or 'generic'"),
        ("arrivals.layout", {"path": "x"}, "arrivals.layout.path: nothing names the exposure"),
        ("arrivals.layout", {}, "arrivals.layout.path: missing key"),
        ("arrivals.layout", {"path": []}, "arrivals.layout.path: List should have at least 1 item"),
        (
            "arrivals.layout",
            {"path": "{exposure}{detector}"},
            "arrivals.layout.path: '{exposure}{detector}': nothing shows where exposure ends and ",
        ),
        (
            "arrivals.layout",
            {"path": ["{exposure}-{detector}", "{day_obs}/{exposure}-{detector}"]},
            "arrivals.layout.path: 0 folders in one path, 1 in another",
        ),
        (
            "arrivals.layout",
            {"pattern": r"(?P<exposure>\d+)_(?P<detector>\d+)", "path": "{exposure}_{detector}"},
            "arrivals.layout: pattern is no longer supported: path alone reads and writes",
        ),
        ("arrivals.done", ".json", "arrivals.done: '.json' is the ending of raws"),
        ("arrivals.done", "a/b", "arrivals.done: a marker is in the folder of its raw"),
        ("arrivals.done", "{name}.ok", "arrivals.done: unknown name 'name'"),
        (
            "arrivals.done",
            "{group}.ok",
            "arrivals.roots.0.done: '{group}.ok': paths of this layout contain no gr",
        ),
        (
            "arrivals.remote",
            [{"uri": "ftp://host/raw"}],
            "arrivals.remote.0.uri: 'ftp://host/raw' is none of",
        ),
        (
            "arrivals.remote",
            [{"uri": "s3://me:it@bucket/raw"}],
            "arrivals.remote.0.uri: credentials must not",
        ),
        ("arrivals.remote", [{"uri": "https://me@host/raw"}], "arrivals.remote.0.uri: credentials must not"),
        (
            "arrivals.remote",
            [{"uri": "s3://a@bucket/raw"}, {"uri": "s3://bucket/raw/"}],
            "arrivals.remote: a prefix is listed twice; notices do not name the profile",
        ),
        ("node.instruments.DemoCam", {0: True, 1: "x"}, "'x' is not a switch of a detector; write true or"),
        ("node.instruments.DemoCam", {"a": True}, "'a' is not a list of detectors"),
        ("node.instruments.DemoCam", {"0-2": True, 2: False}, "a detector is listed twice"),
        (
            "pipelines.main",
            [{"pipeline": []}],
            "pipelines.main.0: unknown key pipeline, missing key pipelines",
        ),
        (
            "pipelines.main",
            [{"ra": {"minimum": 1, "maximum": 2}, "pipelines": []}],
            "pipelines.main.0.ra: unknown keys minimum, maximum, missing keys min, max",
        ),
        ("pipelines.main", [{"ra": {}, "pipelines": []}], "pipelines.main.0.ra: missing keys min, max"),
        ("pipelines.main", [{"ra": {"min": 1}, "pipelines": []}], "pipelines.main.0.ra.max: missing key"),
        (
            "pipelines.main",
            [{"survey": [1, 2, 3], "pipelines": []}],
            "pipelines.main.0.survey.0,1,2: Input should be a valid string",
        ),
        (
            "arrivals.remote",
            [{"uri": "s3://bucket/a/../b"}],
            "arrivals.remote.0.uri: 's3://bucket/a/../b': no",
        ),
        ("pipelines.overrides", {"nolabel": 1}, "pipelines.overrides.nolabel"),
    ],
)
def test_a_wrong_value_is_named_with_file_and_line(
    node: dict[str, Any], tmp_path: Path, place: str, value: Any, message: str
) -> None:
    set_at(node, place, value)
    (problem,) = problems(tmp_path, node)
    assert message in problem
    file, line, _ = problem.split(":", 2)
    assert file == str(tmp_path / "c.yaml")
    assert int(line) >= 1


def test_a_root_may_differ_from_the_others(node: dict[str, Any], tmp_path: Path) -> None:
    node["arrivals"] = {"roots": ["/raw", {"path": "/nfs/../nfs/raw/", "layout": "generic", "watch": "poll"}]}
    first, second = load_node(write(tmp_path, node), {}).arrivals.roots
    assert (first.path, first.layout, first.watch) == (Path("/raw"), None, None)
    assert (second.path, second.layout, second.watch) == (Path("/nfs/raw"), "generic", "poll")


def test_a_layout_that_cannot_identify_the_detectors_is_refused_at_its_root(
    node: dict[str, Any], tmp_path: Path
) -> None:
    node["node"]["instruments"] = {"Hubble": "0-1"}
    node["butler"]["instrument_class"] = {"Hubble": "hst.Hubble"}
    node["arrivals"] = {"roots": [{"path": "/a", "layout": "generic"}, "/b"]}
    (problem,) = problems(tmp_path, node)
    line = (tmp_path / "c.yaml").read_text().splitlines().index("  - /b") + 1
    assert f":{line}: arrivals.roots.1.layout: no focal-plane table for 'Hubble'" in problem


def test_a_misspelled_key_is_one_error(node: dict[str, Any], tmp_path: Path) -> None:
    node["workers"] = {"memory": {"softt": "1GB", "hard": "2GB"}}  # less than the default of soft
    (problem,) = problems(tmp_path, node)
    assert problem.endswith("workers.memory.softt: unknown key; did you mean 'soft'?")


def test_all_errors_are_listed_at_once_in_order_of_lines(node: dict[str, Any], tmp_path: Path) -> None:
    node["node"]["expiry_s"] = "soon"
    del node["arrivals"]["roots"]
    node["workers"] = {"min": 0, "maximum": 4}
    found = problems(tmp_path, node)
    assert len(found) == 4
    lines = [int(problem.split(":")[1]) for problem in found]
    assert lines == sorted(lines)
    assert any("arrivals.roots: missing key" in problem for problem in found)
    assert any("workers.maximum: unknown key" in problem for problem in found)


@pytest.mark.parametrize(
    "others",
    [
        [("node.name", "two words")],
        [("node.state_dir", "/proc/1/nowhere")],
        [("workers.nice", "much")],
        [("arrivals.poll_s", "0")],
        [("butler.padding", 1)],
        [("engine.processes", 0), ("export.retry_s", -1)],
    ],
    ids=lambda others: others[0][0],
)
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("node.instruments", {"DemoCam": "0-8", "LATISS": "0"}, "instrument_class: no entry for LATISS"),
        ("workers.min", 99, "workers: min is more than max"),
        ("workers.memory", {"soft": "9GB"}, "workers.memory: soft is more than hard"),
        ("relay.silence_s", 1.5, "relay.silence_s: 1.5 is less than 2 x heartbeat_s (1)"),
        ("engine.apdb_tasks", ["alerts"], "engine.apdb_tasks.0: alerts must be listed in no_return"),
        ("arrivals.done", "{group}.ok", "arrivals.roots.0.done: '{group}.ok': paths of this layout"),
        ("butler.visits", {"DemoCan": "by-group"}, "butler.visits.DemoCan: instrument_class has no entry"),
    ],
)
def test_an_error_of_a_neighbor_hides_no_contradiction(
    node: dict[str, Any], tmp_path: Path, place: str, value: Any, message: str, others: list[tuple[str, Any]]
) -> None:
    for key, wrong in [(place, value), *others]:
        set_at(node, key, wrong)
    found = problems(tmp_path, node)
    assert [message in problem for problem in found].count(True) == 1
    for key, _ in others:
        assert [f" {key}: " in problem for problem in found].count(True) == 1
    assert len(found) == 1 + len(others)


def test_a_double_key_and_unset_variables_hide_no_other_error(node: dict[str, Any], tmp_path: Path) -> None:
    node["workers"] = {"max": "many", "nice": "${NICENESS}"}
    node["butler"]["central"] = "${REPOS}/main"
    text = (
        yaml.safe_dump(node) + "log: {level: LOUD}\nlog: {format: json, format: console, since: 2026-11-45}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_node(write(tmp_path, text), {"REPO": "/repo"})
    found = caught.value.problems
    for message in (
        "workers.max: Input should be a valid integer",
        "workers.nice: environment variable 'NICENESS' is not set",
        "butler.central: environment variable 'REPOS' is not set; did you mean 'REPO'?",
        "key 'log' occurs twice",
        "key 'format' occurs twice",
        "'2026-11-45' is not a valid timestamp",
    ):
        assert [message in problem for problem in found].count(True) == 1
    assert len(found) == 6  # nothing is reported twice
    assert [int(problem.split(":")[1]) for problem in found] == sorted(
        int(problem.split(":")[1]) for problem in found
    )


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("node.instrument", {}, "node.instrument: unknown key; did you mean 'instruments'?"),
        ("workers.times.prepared_s", 1, "workers.times.prepared_s: unknown key; did you mean 'prepare_s'?"),
        (
            "pipelines.main",
            [{"pipelines": [], "surwey": "a"}],
            "main.0.surwey: unknown key; did you mean 'sur",
        ),
        (
            "arrivals.roots",
            [{"path": "/raw", "layuot": "lsst"}],
            "layuot: unknown key; did you mean 'layout'?",
        ),
        ("relay.silence_s", 1.9, "relay.silence_s: 1.9 is less than 2 x heartbeat_s (1)"),
        ("relay.heartbeat_s", 3, "relay.silence_s: 4 is less than 2 x heartbeat_s (3)"),
        (
            "relay.address",
            "tcp://relay:65536",
            "relay.address: port 65536 of tcp://relay:65536 is not in 1-65535",
        ),
        ("relay.address", "tcp://relay:0", "relay.address: port 0 of tcp://relay:0 is not in 1-65535"),
        (
            "relay.address",
            "tcp://*:5571",
            "relay.address: tcp://*:5571: name the host and the port to connect to",
        ),
        (
            "arrivals.subscribe",
            ["tcp://host:*"],
            "arrivals.subscribe.0.address: tcp://host:*: name the host and the po",
        ),
        (
            "redis.password",
            "hush-7",
            "redis.password: not an absolute path; write that of a file with the se",
        ),
        ("export.writer.password", "hush-7", "export.writer.password: not an absolute path; write that"),
        (
            "publish",
            [{"what": "telemetry", "to": "https://h/p", "token": "hush-7"}],
            "publish.0.token: not an absolute path; write that",
        ),
        ("node.state_dir", "state", "node.state_dir: state is relative; write an absolute path"),
        ("node.ramdisk", "ram", "node.ramdisk: ram is relative; write an absolute path"),
        ("node.control", "control", "node.control: control is relative; write an absolute path"),
        ("node.control", f"/{'c' * 107}", "node.control: /ccc"),
        ("pipelines.main", [{"pipelines": ["Ap.yaml"]}], "Ap.yaml is relative; write an absolute path"),
        (
            "pipelines.main",
            [{"binary-map": "map.fits", "pipelines": []}],
            "binary-map: map.fits is relative; write an absolute path",
        ),
        ("engine", {"apdb": {"DemoCan": "a"}, "apdb_tasks": ["a"], "no_return": ["a"]}, "mean 'DemoCam'?"),
        (
            "butler.ingest",
            {"DemoCan": "obs_base"},
            "instrument_class has no entry for DemoCan; did you mean 'D",
        ),
        ("butler.calibs", ["{instrment}/calib"], "butler.calibs.0: {instrment}/calib: only {instrument} is"),
        (
            "butler.inputs",
            ["a", "{instrument"],
            "butler.inputs.1: {instrument: only {instrument} is replaced",
        ),
        ("butler.inputs", ["{}/templates"], "butler.inputs.0: {}/templates: only {instrument} is replaced"),
        ("butler.inputs", ["{instrument.nmae}/a"], "butler.inputs.0: {instrument.nmae}/a: only {instrument}"),
        ("workers.environment", {"A": "${HOSTNAM}"}, "'HOSTNAM' is not set; did you mean 'HOSTNAME'?"),
    ],
)
def test_a_misspelling_or_an_impossible_value_is_refused_with_line_and_hint(
    node: dict[str, Any], tmp_path: Path, place: str, value: Any, message: str
) -> None:
    set_at(node, place, value)
    with pytest.raises(ConfigError) as caught:
        load_node(write(tmp_path, node), {"HOSTNAME": "h"})
    (problem,) = caught.value.problems
    assert message in problem
    assert "hush-7" not in problem
    assert int(problem.split(":")[1]) > 1


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("node.ramdisk", "/usr/ram", "node.ramdisk: /usr/ram is not on a tmpfs"),
        ("node.state_dir", "/dev/shm/state", "node.state_dir: /dev/shm/state is on a RAM disk: accepted vis"),
        (
            "workers.memory.hard",
            "900TB",
            "workers.memory.hard: 900000 GB are more than the memory of this host",
        ),
        (
            "workers.memory.budget",
            "900TB",
            "workers.memory.budget: 900000 GB are more than the memory of thi",
        ),
        (
            "workers.memory.ramdisk",
            "900TB",
            "workers.memory.ramdisk: 900000 GB are more than the whole RAM d",
        ),
        (
            "pipelines.main",
            [{"instrument": "DemoCan", "pipelines": []}],
            "main.0.instrument: matches no visit of DemoCan: node.instruments does not have it; did you mea",
        ),
    ],
)
def test_what_does_not_fit_the_host_is_a_warning_with_line(
    node: dict[str, Any], tmp_path: Path, place: str, value: Any, message: str
) -> None:
    node["node"]["ramdisk"] = "/dev/shm"
    set_at(node, place, value)
    path = write(tmp_path, node)
    (found,) = (text for text in ConfigFile.read(path, {}).remarks() if message in text)
    assert int(found.split(":")[1]) > 1


@pytest.mark.parametrize(
    ("shown", "warned"),
    [
        ("loaded\n1min 30s", False),
        ("loaded\n1min 14s 500ms", True),
        ("loaded\ninfinity", False),
        ("not-found\n1min", False),
        ("", False),
    ],
)
def test_a_stop_that_takes_longer_than_the_unit_allows_is_a_warning(
    node: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str, warned: bool
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\n[ $4 = ppdaemon.service ] && printf '{shown}\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = list(exceeds_unit(load_node(write(tmp_path, node), {})))
    assert [(key, text.partition(" (")[0]) for key, text in found] == [
        (("workers", "times", "stop_s"), "a stop takes up to 75 s")
    ] * warned


def test_a_file_is_read_once(node: dict[str, Any]) -> None:
    """Its lines are those of the text that was checked, also if it is edited meanwhile."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream:
        stream.write(yaml.safe_dump(node))
    try:
        assert ConfigFile.read(Path(f"/proc/self/fd/{read_end}"), {}).lines[("node", "name")] > 1
    finally:
        os.close(read_end)


def test_folders_and_pipelines_that_cannot_be_used_are_all_named(
    node: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    node["node"]["state_dir"] = str(tmp_path / "file" / "state")
    node["node"]["ramdisk"] = "/proc/1/nowhere"
    node["pipelines"]["main"][0]["pipelines"] = ["/nowhere/ApPipe.yaml"]
    found = problems(tmp_path, node)
    assert len(found) >= 2
    assert "node.state_dir" in "".join(found)
    assert "/nowhere/ApPipe.yaml: no such file" in "".join(found)


def test_butler_may_be_missing_only_for_other_work(node: dict[str, Any], tmp_path: Path) -> None:
    del node["butler"]
    assert "butler: missing key" in problems(tmp_path, node)[0]
    node["workers"] = {"work": "scripted"}
    assert load_node(write(tmp_path, node), {}).butler is None


def test_settings_of_an_instrument_need_a_known_instrument(node: dict[str, Any], tmp_path: Path) -> None:
    node["butler"] |= {"visits": {"NoCam": "by-group"}, "ingest": {"OtherCam": "obs_base"}}
    visits, ingest = problems(tmp_path, node)
    assert "butler.visits.NoCam: instrument_class has no entry for NoCam" in visits
    assert "butler.ingest.OtherCam: instrument_class has no entry for OtherCam" in ingest


def test_obs_base_does_not_ingest_files_of_all_detectors(node: dict[str, Any], tmp_path: Path) -> None:
    layout = {"path": "{instrument}/{exposure}", "detector_keyword": "CCDNUM"}
    root = {"path": str(tmp_path), "layout": layout}
    node["arrivals"] |= {"roots": [*node["arrivals"]["roots"], root]}
    keywords = NodeConfig.model_validate(node).arrivals.detector_keywords
    assert keywords[f"{tmp_path}/"] == "CCDNUM"
    assert [each for path, each in keywords.items() if path != f"{tmp_path}/"] == [None]
    node["butler"] |= {"ingest": "obs_base"}
    assert any("detector_keyword" in text for text in problems(tmp_path, node))


def test_ingest_is_set_for_all_or_by_instrument(node: dict[str, Any]) -> None:
    for ingest, kinds in (
        ("obs_base", ["obs_base", "obs_base"]),
        ({"LATISS": "obs_base"}, ["obs_base", "builtin"]),
    ):
        node["butler"] |= {"ingest": ingest, "instrument_class": {"LATISS": "a.A", "LSSTCam": "b.B"}}
        node["node"]["instruments"] = {"LATISS": "0"}
        butler = NodeConfig.model_validate(node).butler
        assert butler is not None
        assert [butler.ingest_of(name) for name in ("LATISS", "LSSTCam")] == kinds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("8GiB", 8 * 2**30),
        ("1.5 kB", 1500),
        ("100KB", 100_000),
        ("2KiB", 2048),
        ("12 B", 12),
        (7, 7),
    ],
)
def test_sizes(node: dict[str, Any], text: str | int, size: int) -> None:
    node["workers"] = {"memory": {"soft": text, "hard": "1TB"}}
    assert NodeConfig.model_validate(node).workers.memory.soft == size


@pytest.mark.parametrize(
    ("text", "ids"), [("0-3", (0, 1, 2, 3)), ("7", (7,)), (" 1 , 3-4 ", (1, 3, 4)), ("0-0", (0,))]
)
def test_detectors_are_lists_and_ranges(text: str, ids: tuple[int, ...]) -> None:
    assert parse_detector_list(text) == ids


@pytest.mark.parametrize(
    ("written", "ids"),
    [
        ("{0: true, 1: false, 2: true}", (0, 2)),
        ("{0: True, 1: 0, 2: 1}", (0, 2)),
        ("{0-3: on, '5,7': yes, 8: no}", (0, 1, 2, 3, 5, 7)),
        ("{0: false}", ()),
    ],
)
def test_detectors_may_be_switches(
    node: dict[str, Any], tmp_path: Path, written: str, ids: tuple[int, ...]
) -> None:
    text = yaml.safe_dump(node).replace("DemoCam: 0-8", f"DemoCam: {written}")
    assert load_node(write(tmp_path, text), {}).node.instruments["DemoCam"] == ids
    (tmp_path / "relay.yaml").write_text(
        f"state_dir: {tmp_path}\ninstruments:\n  DemoCam: {{detectors: {written}}}\n"
    )
    assert load_relay(tmp_path / "relay.yaml", {}).instruments["DemoCam"].detectors == ids


def test_rules_may_be_merged_from_an_anchor(node: dict[str, Any], tmp_path: Path) -> None:
    pipelines = node.pop("pipelines")["main"][0]["pipelines"]
    rules = f"""
pipelines:
  main:
  - &sky
    survey: a
    coord-type: Boresight
    pipelines: {pipelines}
  - <<: *sky
    survey: b
  - <<: [{{survey: c}}, *sky]
    dec: {{min: 0, max: 1}}
"""
    main = load_node(write(tmp_path, yaml.safe_dump(node) + rules), {}).pipelines.main
    assert [rule.survey for rule in main] == [("a",), ("b",), ("c",)]
    assert [rule.coord_type for rule in main] == ["boresight"] * 3
    assert len({rule.pipelines for rule in main}) == 1
    assert main[2].dec is not None


def test_an_error_that_anchors_repeat_is_listed_once(node: dict[str, Any], tmp_path: Path) -> None:
    del node["pipelines"]
    rules = """
pipelines:
  main:
  - &bad
    survey: 365
    pipelines: [/nowhere/Ap.yaml]
  - *bad
  - <<: *bad
    filter: r_03
"""
    text = yaml.safe_dump(node) + rules
    line = text.splitlines().index("    survey: 365") + 1
    survey, pipeline = problems(tmp_path, text)
    assert f"c.yaml:{line}: pipelines.main.0.survey.0: " in survey
    assert f"c.yaml:{line + 1}: pipelines.main.0.pipelines.0: /nowhere/Ap.yaml: no such file" in pipeline


def test_a_range_that_is_probably_not_meant_is_remarked(node: dict[str, Any], tmp_path: Path) -> None:
    node["pipelines"]["main"][:0] = [
        {"ra": {"min": low, "max": high}, "pipelines": []} for low, high in ((-10, 370), (340, 20), (7, 7))
    ]
    path = write(tmp_path, node)
    wide, point = (text for text in ConfigFile.read(path, {}).remarks() if ".ra: " in text)
    line = path.read_text().splitlines().index("  - ra:") + 1
    assert wide == f"{path}:{line}: pipelines.main.0.ra: -10 to 370 is used as 350 to 10"
    assert point.endswith("pipelines.main.2.ra: 7 to 7 is used as all right ascensions")


@pytest.mark.parametrize(
    "written", ["-1", "[-1]", "[true]", "[0, false]", "true", "042", "[000, 010]", "1:30"]
)
def test_a_number_that_is_no_detector_is_refused(node: dict[str, Any], tmp_path: Path, written: str) -> None:
    text = yaml.safe_dump(node).replace("DemoCam: 0-8", f"DemoCam: {written}")
    assert len(problems(tmp_path, text)) == (2 if written == "[000, 010]" else 1)


def test_a_scheme_is_without_case(node: dict[str, Any]) -> None:
    node["arrivals"]["remote"] = [{"uri": "S3://Profile@bucket/Raw/"}]
    [root] = NodeConfig.model_validate(node).arrivals.remote
    assert root.uri == "s3://Profile@bucket/Raw"


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "0-99999", "1,1"])
def test_what_is_no_list_of_detectors_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="detector"):
        parse_detector_list(text)


def test_a_relay_needs_instruments_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_relay(write(tmp_path, {"name": "r"}), {})
    (problem,) = caught.value.problems
    assert problem.endswith(": (the whole file): missing keys state_dir, instruments")


# --- redis -------------------------------------------------------------------


def with_redis(node: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return node | {"redis": {"url": "redis://127.0.0.1:6379/0", "streams": ["instrument:democam"]} | keys}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"url": "redis://:secret@127.0.0.1:6379"}, "redis.url: a password in the address would be shown"),
        ({"url": "127.0.0.1:6379"}, "redis.url: 127.0.0.1:6379 is not an address"),
        ({"url": "redis://127.0.0.1:x"}, "redis.url: redis://127.0.0.1:x is not an address"),
        ({"streams": []}, "redis.streams: list at least one stream"),
        (
            {"watching_groups": ["ppdaemon"]},
            "redis.watching_groups: ppdaemon is redis.group, whose consumers",
        ),
        ({"streams": ["s", "s"]}, "redis.streams: a stream is listed twice"),
        ({"url": "redis://elsewhere:6379"}, "redis://elsewhere:6379 is on another host"),
        ({"permit_s": 7000}, "redis.permit_s: 7000 is less than twice node.expiry_s (3600)"),
        ({"trim_after_s": 1000}, "redis.trim_after_s: 1000 is less than node.expiry_s (3600)"),
    ],
)
def test_streams_that_cannot_be_read(
    node: dict[str, Any], tmp_path: Path, keys: dict[str, Any], text: str
) -> None:
    (problem,) = problems(tmp_path, with_redis(node, **keys))
    assert text in problem


@pytest.mark.parametrize(
    "url", ["unix:///run/redis.sock", "rediss://elsewhere:6379", "redis://127.0.0.1:1/2"]
)
def test_visits_of_redis_are_shared(node: dict[str, Any], tmp_path: Path, url: str) -> None:
    assert load_node(write(tmp_path, with_redis(node, url=url)), {}).shares_visits
    assert not load_node(write(tmp_path, node), {}).shares_visits


@pytest.mark.parametrize(
    ("relay", "text"),
    [
        ({"address": "tcp://127.0.0.1:5571"}, "redis.url: visits come from a relay or from Redis"),
        ({"alone": "cross"}, "relay.alone: without an answer of Redis nothing permanent is written"),
    ],
)
def test_visits_have_one_source(
    node: dict[str, Any], tmp_path: Path, relay: dict[str, str], text: str
) -> None:
    (problem,) = problems(tmp_path, with_redis(node) | {"relay": relay})
    assert text in problem
