# SPDX-License-Identifier: BSD-3-Clause
"""``ppctl`` against a scripted daemon: output, exit statuses, bad company."""

import errno
import io
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from controlserver import ControlServer, late, status, summary, visit, worker
from rich.console import Console

from ppdaemon import terminal
from ppdaemon.ctl import actions, cli, target
from ppdaemon.ctl.client import Daemon
from ppdaemon.ctl.tables import visit_view
from ppdaemon.errors import Unavailable
from ppdaemon.reports import REQUESTS, RelayNodeRow, RelayStatusReport, StatusReport, VisitRow
from ppdaemon.states import ExitCode, Outcome

type Ppctl = Callable[..., tuple[int, str, str]]

GOOD: dict[str, Any] = {
    "status": status(),
    "workers": [
        worker(0),
        worker(1, state="processing", group="2025-11-22T03:25:16.951", detector=4),
        worker(3, state="quarantined", note="ImportError: no module named 'sky'"),
    ],
    "visits": [visit(0), visit(1, outcome="crashed", reason="SIGSEGV [in subtract]"), visit(2, outcome=None)],
    "visit_summaries": [
        summary(),
        summary(group="2025-11-22T03:24:37.101", detectors={7: "partial"}, failed_detector=None),
    ],
    "visit": [visit(0), visit(1, outcome="crashed", reason="SIGSEGV [in subtract]")],
    "late": [late()],
    "requeue": [
        {"instrument": "DemoCam", "detector": 3, "attempt": 2},
        {"instrument": "DemoCam", "detector": 4, "text": "it has succeeded"},
    ],
    "drain": None,
    "resume": {"closed": [], "problems": []},
    "reload": "the new configuration is in use (generation 2)",
    "export": None,
    "restart": None,
    "kill": None,
}


PROBLEM = {"source": "relay", "text": "no relay answers", "since_tai": 1.0, "degrades": True}


def ok(data: Any) -> list[bytes]:
    return [json.dumps({"type": "ok", "data": data}).encode()]


def failing(code: str, text: str) -> list[bytes]:
    return [json.dumps({"type": "failed", "code": code, "text": text}).encode()]


@pytest.fixture
def serve(socket_dir: Path) -> Iterator[Callable[..., ControlServer]]:
    servers = []

    def start(answer: Callable[[dict[str, Any]], list[bytes] | None]) -> ControlServer:
        servers.append(ControlServer(socket_dir / "control.sock", answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def good(serve: Callable[..., ControlServer]) -> ControlServer:
    return serve(lambda request: ok(GOOD[request["type"]]))


@pytest.fixture
def ppctl(socket_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ppctl:
    """Run ppctl in this process; return exit status, stdout and stderr."""
    monkeypatch.setattr(Daemon.__init__, "__defaults__", (30.0,))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["--socket", str(socket_dir / "control.sock"), *arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def impatient(ppctl: Ppctl, monkeypatch: pytest.MonkeyPatch) -> Ppctl:
    """Run ppctl against what does not answer."""
    monkeypatch.setattr(Daemon.__init__, "__defaults__", (0.3,))
    return ppctl


def test_status_shows_the_daemon_in_one_screen(good: ControlServer, ppctl: Ppctl) -> None:
    code, out, err = ppctl("status")
    assert (code, err) == (0, "")
    assert out.startswith("ppdaemon node1  running")
    for words in (
        "2 h 13 min",
        "2 idle",
        "1 quarantined",
        "34 succeeded",
        "36 raws",
        "! 10 min: slot 3 is quarantined",
    ):
        assert words in out
    assert len(out.splitlines()) < 24


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"state": "running", "problems": []}, 0),
        ({"state": "running", "problems": [{**PROBLEM, "degrades": False}]}, 0),
        ({"state": "degraded", "problems": [PROBLEM]}, 1),
        ({"state": "running", "problems": [PROBLEM]}, 1),
        ({"state": "draining", "problems": []}, 1),
        ({"state": "starting", "problems": []}, 1),
    ],
)
def test_a_check_of_the_status_exits_by_its_health(
    serve: Callable[..., ControlServer], ppctl: Ppctl, changes: dict[str, Any], code: int
) -> None:
    serve(lambda request: ok(status() | changes))
    assert ppctl("status", "--check")[0] == code
    assert ppctl("status")[0] == 0


def test_a_socket_of_the_environment_is_used(
    good: ControlServer, socket_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(target.SOCKET_VARIABLE, str(socket_dir / "control.sock"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["workers"])
    assert (ended.value.code, "quarantined" in capsys.readouterr().out) == (0, True)


def test_a_relays_socket_of_the_environment_is_used(
    serve: Callable[..., ControlServer],
    socket_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve(lambda _request: ok([]))
    monkeypatch.setenv(target.RELAY_SOCKET_VARIABLE, str(socket_dir / "control.sock"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["--relay", "hosts"])
    assert (ended.value.code, capsys.readouterr().out) == (0, "no nodes\n")


def test_a_visit_shows_the_way_to_its_log(serve: Callable[..., ControlServer], ppctl: Ppctl) -> None:
    answers = GOOD | {"status": status(logs="/var/lib/x/logs")}
    serve(lambda request: ok(answers[request["type"]]))
    group = "2025-11-22T03:25:16.951"
    way = f"log: ppctl log {group} [DETECTOR], from /var/lib/x/logs/worker-SLOT.log"
    assert ppctl("visit", group)[1].splitlines()[-1] == way
    assert way not in ppctl("visit", group, "--json")[1]


def test_the_way_to_the_log_can_be_pasted_into_a_shell(
    serve: Callable[..., ControlServer], ppctl: Ppctl
) -> None:
    group = "two words; it's odd"
    rows = [{**row, "group": group} for row in GOOD["visit"]]
    answers = GOOD | {"status": status(logs="/logs"), "visit": rows}
    serve(lambda request: ok(answers[request["type"]]))
    way = ppctl("visit", group)[1].splitlines()[-1].removeprefix("log: ").partition(" [DETECTOR]")[0]
    assert shlex.split(way) == ["ppctl", "log", group]


def test_a_span_without_visits_has_no_timeline(serve: Callable[..., ControlServer], ppctl: Ppctl) -> None:
    serve(lambda request: ok([]))
    assert ppctl("timeline", "--night", "20250101") == (0, "no visits\n", "")


@pytest.mark.parametrize("form", ["csv", "pipetask", "bps"])
def test_two_formats_at_once_are_refused(good: ControlServer, ppctl: Ppctl, form: str) -> None:
    code, out, error = ppctl("failed", "--json", "--format", form)
    assert (code, out) == (64, "")
    assert f"use either --json or --format {form}" in error


def test_a_broken_file_does_not_keep_an_operator_from_the_daemon(
    good: ControlServer,
    socket_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = tmp_path / "ppdaemon.yaml"
    broken.write_text("node: {name: n1\nrelay: [")
    monkeypatch.setenv(target.SOCKET_VARIABLE, str(socket_dir / "control.sock"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["--config", str(broken), "workers"])
    out, err = capsys.readouterr()
    assert (ended.value.code, "quarantined" in out) == (0, True)
    assert f"{broken}:2: not YAML" in err
    assert f"reading from {socket_dir}/control.sock" in err


def test_nothing_is_done_to_a_daemon_that_may_be_another_one(
    good: ControlServer,
    socket_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(target.SOCKET_VARIABLE, str(socket_dir / "control.sock"))
    broken = tmp_path / "node-b.yaml"
    broken.write_text("node: [")
    for command in (["drain"], ["restart", "3"], ["kill", "3"], ["resume"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["--config", str(broken), *command])
        assert (ended.value.code, good.requests) == (78, [])
        assert "name the daemon by --socket" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["--config", str(tmp_path / "misspelled.yaml"), "status"])
    assert (ended.value.code, good.requests) == (78, [])


@pytest.mark.parametrize(
    "arguments", [("visits", "--where", f"group={'x' * 300}"), ("visit", "g" * 300), ("log", "g" * 300)]
)
def test_an_argument_that_no_request_may_have_is_wrong_usage(
    good: ControlServer, ppctl: Ppctl, arguments: tuple[str, ...]
) -> None:
    code, _, err = ppctl(*arguments)
    assert (code, good.requests) == (64, [])
    assert "group" in err
    assert "internal error" not in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_letters_gets_another_sign(
    good: ControlServer, ppctl: Ppctl, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
    reason = "calibration \N{GREEK SMALL LETTER ALPHA} is missing"
    monkeypatch.setitem(GOOD["visit_summaries"][0], "reason", reason)
    assert ppctl("visits")[0] == 0
    sys.stdout.flush()
    assert b"calibration ? is missing" in printed.getvalue()
    assert b"#xw" in printed.getvalue()


def test_a_pipe_gets_no_blanks_at_the_ends_of_lines(good: ControlServer, ppctl: Ppctl) -> None:
    for command in ("status", "visits", "workers", "late"):
        _, out, _ = ppctl(command)
        assert out.splitlines() == [line.rstrip() for line in out.splitlines()]


def test_status_as_json_is_the_report(good: ControlServer, ppctl: Ppctl) -> None:
    code, out, _ = ppctl("status", "--json")
    assert code == 0
    assert StatusReport.model_validate_json(out) == StatusReport.model_validate(status())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("visits",), ("█✗▂", "1/1", "2/3", "38.1 s", "detector 1: SIGSEGV [in subtract]", "▂ ready")),
        (("failed",), ("crashed",)),
        (
            ("visit", "2025-11-22T03:25:16.951"),
            ("BLOCK-365", "2025112100156", "38.100", "SIGSEGV [in subtract]"),
        ),
        (("workers",), ("processing", "quarantined", "5001", "no module named 'sky'")),
        (("timeline", "2025-11-22T03:25:16.951"), ("s since shutter close", "pppp", "crashed")),
        (("top",), ("node1", "quarantined", "2/3", "q quit")),
        (("late",), ("R22_S11.fits", "no_image")),
        (("requeue", "2025-11-22T03:25:16.951"), ("attempt 2", "refused", "it has succeeded")),
        (("requeue", "2025-11-22T03:25:16.951", "--force"), ("attempt 2",)),
        (("drain",), ("draining",)),
        (("resume",), ("taking visits",)),
        (("reload",), ("the new configuration is in use (generation 2)",)),
        (("export", "now"), ("exporting",)),
        (("restart", "3"), ("slot 3 restarts",)),
        (("kill", "3"), ("slot 3 is killed",)),
    ],
)
def test_every_command_prints_text(
    good: ControlServer, ppctl: Ppctl, command: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, out, err = ppctl(*command)
    assert (code, err) == (0, "")
    for word in words:
        assert word in out


@pytest.mark.parametrize(
    ("data", "code", "lines"),
    [
        ({"closed": [], "problems": []}, 0, ["taking visits"]),
        (
            {"closed": [], "problems": ["export: failing: the mark is missing"]},
            0,
            ["taking visits", "not healthy: export: failing: the mark is missing"],
        ),
        (
            {"closed": ["the disk is full", "drained at the relay"], "problems": ["slot 3"]},
            1,
            [
                "the drain has ended; no visits are taken yet: the disk is full",
                "the drain has ended; no visits are taken yet: drained at the relay",
            ],
        ),
    ],
)
def test_a_resume_says_what_keeps_visits_away(
    serve: Callable[..., ControlServer], ppctl: Ppctl, data: Any, code: int, lines: list[str]
) -> None:
    serve(lambda request: ok(data))
    assert ppctl("resume") == (code, "".join(f"{line}\n" for line in lines), "")
    assert ppctl("resume", "--json")[0] == code


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (("visits",), list),
        (("workers",), list),
        (("timeline", "g"), list),
        (("late",), list),
        (("requeue", "g"), list),
        (("drain",), dict),
    ],
)
def test_commands_print_json(good: ControlServer, ppctl: Ppctl, command: tuple[str, ...], kind: type) -> None:
    code, out, _ = ppctl(*command, "--json")
    assert code == 0
    assert isinstance(json.loads(out), kind)


def test_a_reason_of_several_detectors_is_shown_once_with_all_of_them() -> None:
    reasons = {0: "no flat", 1: "no flat", 2: "", 3: "SIGSEGV", 4: "no flat"}
    rows = [
        VisitRow.model_validate(visit(number, outcome="failed", reason=reason))
        for number, reason in reasons.items()
    ]
    console = Console(file=io.StringIO(), width=200, markup=False, highlight=False)
    console.print(visit_view(rows))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.rstrip() for line in lines if line.startswith("detector")] == [
        "detectors 0-1,4: no flat",
        "detector 3: SIGSEGV",
    ]


def test_a_problem_that_limits_nothing_has_another_mark(
    serve: Callable[..., ControlServer], ppctl: Ppctl
) -> None:
    problems = [
        {"source": "slots", "text": "slot 3 is quarantined", "since_tai": 1.0, "degrades": True},
        {"source": "metrics", "text": "metrics cannot be served", "since_tai": 1.0, "degrades": False},
    ]
    serve(lambda request: ok(status(problems=problems)))
    marks = [line[0] for line in ppctl("status")[1].splitlines() if line[0] in "!-"]
    assert marks == ["!", "-"]


def test_no_failure_is_one_line(serve: Callable[..., ControlServer], ppctl: Ppctl) -> None:
    serve(lambda request: ok(status() if request["type"] == "status" else []))
    assert ppctl("failed")[1] == "nothing failed\n"


def test_requests_are_those_of_the_protocol(good: ControlServer, ppctl: Ppctl) -> None:
    ppctl("visits", "--limit", "7", "--since", "2026-11-22T00:00", "--where", "instrument=LSSTCam detector=3")
    ppctl("failed", "--outcome", "crashed,failed")
    ppctl("restart", "3")
    ppctl("export", "init")
    ppctl("visit", "a#1")
    requests = (REQUESTS.validate_python(each) for each in good.requests)
    assert [{"type": each.type, **each.model_dump(exclude_defaults=True)} for each in requests] == [
        {
            "type": "visit_summaries",
            "limit": 7,
            "since_tai": 1795305600.0,
            "instrument": "LSSTCam",
            "detectors": (3,),
        },
        {"type": "visits", "failed": True, "outcomes": (Outcome.CRASHED, Outcome.FAILED)},
        {"type": "status"},  # which has the raws that no visit got
        {"type": "restart", "slot": 3},
        {"type": "status"},  # whether the daemon hangs
        {"type": "export", "action": "init"},
        {"type": "visit", "group": "a#1"},
        {"type": "status"},  # which has the folder of the logs
    ]


def test_detectors_are_named_as_in_the_configuration(good: ControlServer, ppctl: Ppctl) -> None:
    ppctl("requeue", group := "2025-11-22T03:25:16.951", "3-5,7", "--force")
    ppctl("requeue", "latest")
    wanted = [each for each in good.requests if each["type"] == "requeue"]
    assert [REQUESTS.validate_python(each).model_dump() for each in wanted] == [
        {"type": "requeue", "group": group, "detectors": (3, 4, 5, 7), "force": True},
        {"type": "requeue", "group": group, "detectors": None, "force": False},
    ]


def test_a_named_detector_that_is_refused_is_a_failure(good: ControlServer, ppctl: Ppctl) -> None:
    code, out, err = ppctl("requeue", "g", "3,4")
    assert (code, err) == (1, "")
    assert "it has succeeded" in out


def test_a_visit_of_which_nothing_is_left_to_try_is_a_failure(
    serve: Callable[..., ControlServer], ppctl: Ppctl
) -> None:
    row = {"instrument": "DemoCam", "detector": 4, "text": "it has succeeded"}
    answers = GOOD | {"requeue": [row]}
    serve(lambda request: ok(answers[request["type"]]))
    assert ppctl("requeue", "g")[0] == 1


def test_late_raws_are_counted_in_the_status(serve: Callable[..., ControlServer], ppctl: Ppctl) -> None:
    serve(lambda _request: ok(status(late_raws=3)))
    assert "3, see ppctl late" in ppctl("status")[1]


def test_the_status_shows_what_waits_for_packers(serve: Callable[..., ControlServer], ppctl: Ppctl) -> None:
    images = {"images": 2, "mb": 400.0, "max_mb": 2000.0, "declined": 3, "declining": False}
    serve(lambda _request: ok(status(uncompressed=images)))
    assert "2 images (400 MB of 2.0 GB) uncompressed\n" in ppctl("status")[1]
    images["declining"] = True
    assert "no room for 3, workers compressed them" in " ".join(ppctl("status")[1].split())
    images |= {"images": 0, "declining": False}
    assert "packing" not in ppctl("status")[1]


def test_the_status_shows_when_the_host_takes_no_more_visits(
    serve: Callable[..., ControlServer], ppctl: Ppctl
) -> None:
    report = status()
    serve(lambda _request: ok(report | {"takes_until_tai": report["tai"] + 7200.0}))
    assert "takes no more visits after 20" in ppctl("status")[1]
    assert "in 2 h" in ppctl("status")[1]


def test_samples_of_messages_are_shown_on_request(serve: Callable[..., ControlServer], ppctl: Ppctl) -> None:
    serve(lambda _request: ok(status(samples={"bad_message.json": "[red]{\x1b"})))
    assert "bad_message.json: [red]{?" in ppctl("status", "-v")[1]
    assert "[red]" not in ppctl("status")[1]


def test_a_configuration_that_cannot_be_reloaded_is_shown_with_all_its_errors(
    serve: Callable[..., ControlServer], ppctl: Ppctl
) -> None:
    refusal = failing("config", "a.yaml:3: workers.max: bad\na.yaml:9: unknown key")
    serve(lambda request: ok(status()) if request["type"] == "status" else refusal)
    code, out, err = ppctl("reload")
    assert (code, out) == (78, "")
    assert err.splitlines() == ["ppctl: a.yaml:3: workers.max: bad", "ppctl: a.yaml:9: unknown key"]


@pytest.mark.parametrize(
    ("command", "expected"), [(("status",), 3), (("visits",), 69), (("top",), 69), (("drain",), 69)]
)
def test_without_a_daemon(ppctl: Ppctl, command: tuple[str, ...], expected: int) -> None:
    code, out, err = ppctl(*command)
    assert (code, out) == (expected, "")
    assert "no daemon listens here" in err


def test_a_socket_that_a_dead_daemon_left_is_not_running(ppctl: Ppctl, socket_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(socket_dir / "control.sock"))
    assert ppctl("status")[0] == 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ([], "has closed the connection"),
        ([b"what?"], "invalid answer"),
        ([b"\xff\xfe"], "invalid answer"),
        ([b"[" * 5000], "invalid answer"),
        ([b'{"type": "ok", "data": {"node": "n"}}'], "may have another version than ppctl"),
        (ok({"relay": "r"}), "is not a ppdaemon: --relay is for pprelay only"),
        (ok(status(new_field=1)), "new_field"),
        (ok(status(state="hibernating")), "may have another version than ppctl"),
        ([b'{"type": "wait"}'], "may have another version than ppctl"),
        (failing("bad_request", "unknown type"), "version"),
        (failing("bad_request", "unknown type"), "--relay is for pprelay only"),
        (failing("internal", "disk on fire"), "disk on fire"),
    ],
)
def test_a_daemon_in_trouble_or_of_another_version_is_unknown(
    serve: Callable[..., ControlServer], ppctl: Ppctl, answer: list[bytes], words: str
) -> None:
    serve(lambda _request: answer)
    code, out, err = ppctl("status")
    assert (code, out) == (4, "")
    assert words in err


def test_a_hung_daemon_is_left_after_the_time_out(
    serve: Callable[..., ControlServer], impatient: Ppctl
) -> None:
    serve(lambda _request: None)
    begun = time.monotonic()
    assert impatient("workers")[0] == 69
    assert time.monotonic() - begun < 10
    code, out, err = impatient("status")
    assert (code, out) == (4, "")
    assert "no answer within 0.3 s" in err
    assert "may still be carried out" not in err
    for command in (("drain",), ("--relay", "drain", "n1")):
        code, _, err = impatient(*command)
        assert (code, "The command may still be carried out: look at its effect" in err) == (69, True)


def test_a_full_backlog_is_a_hung_daemon(impatient: Ppctl, socket_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(socket_dir / "control.sock"))
        listener.listen(0)
        first.connect(listener.getsockname())
        code, _, err = impatient("status")
    assert code == 4
    assert "may hang" in err


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (failing("not_found", "no slot 99"), 65),
        (failing("refused", "stopping"), 75),
        (failing("internal", "x"), 70),
    ],
)
def test_what_the_daemon_does_not_do_has_its_exit_status(
    serve: Callable[..., ControlServer], ppctl: Ppctl, answer: list[bytes], expected: int
) -> None:
    serve(lambda _request: answer)
    code, out, err = ppctl("restart", "99")
    assert (code, out) == (expected, "")
    assert err.startswith("ppctl: ")


def test_an_unknown_visit_is_reported_as_unknown(serve: Callable[..., ControlServer], ppctl: Ppctl) -> None:
    serve(lambda _request: ok([]))
    code, _, err = ppctl("visit", "2025")
    assert code == 65
    assert "'2025'" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("restart", "all"),
        ("visits", "--limit", "0"),
        ("kill", "--", "-1"),
        ("requeue", "g", "R22_S11"),
    ],
)
def test_wrong_usage_is_64(ppctl: Ppctl, arguments: tuple[str, ...]) -> None:
    code, _, err = ppctl(*arguments)
    assert code == 64
    assert "Usage:" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("hosts",), "add --relay to its --socket"),
        (("drain", "n1"), "NODE needs --relay"),
        (("--relay", "drain"), "name the node"),
        (("--relay", "workers"), "ppctl workers is for a node, not for --relay"),
        (("--relay", "requeue", "g"), "ppctl requeue is for a node"),
    ],
)
def test_what_is_not_for_a_node_or_not_for_a_relay_is_wrong_usage(
    ppctl: Ppctl, arguments: tuple[str, ...], words: str
) -> None:
    code, _, err = ppctl(*arguments)
    assert code == 64
    assert words in err


def test_the_socket_of_a_relay_is_found_through_its_configuration(
    serve: Callable[..., ControlServer],
    socket_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = serve(lambda _request: ok([]))
    config = tmp_path / "relay.yaml"
    for text in (f"state_dir: {socket_dir}\n", f"state_dir: /nowhere\ncontrol: {server.path}\n"):
        config.write_text(text)
        with pytest.raises(SystemExit) as ended:
            cli.main(["--relay", "--config", str(config), "hosts"])
        assert ended.value.code == 0
        assert capsys.readouterr().out == "no nodes\n"
    config.write_text("state_dir: 7\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["--relay", "--config", str(config), "hosts"])
    assert ended.value.code == 78
    assert f"{config}:1: state_dir: missing key, or not a text" in capsys.readouterr().err


def test_escape_sequences_of_others_do_not_reach_the_terminal(
    serve: Callable[..., ControlServer], ppctl: Ppctl
) -> None:
    serve(lambda _request: ok([summary(reason="\x1b[2J\x1b]0;title\x07 at\nline 2")]))
    _, out, _ = ppctl("visits")
    assert "\x1b" not in out
    assert "at line 2" in out


def test_the_socket_is_found_through_a_configuration(
    good: ControlServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "node.yaml"
    config.write_text(
        "node: {name: n, state_dir: /nowhere/s, ramdisk: /nowhere/r, "
        f"control: {good.path}, instruments: {{DemoCam: 0-8}}}}\n"
        "arrivals: {roots: [/nowhere/raw]}\n"
        "workers: {work: scripted}\n"
        "pipelines: {main: [{pipelines: [/nowhere/ApPipe.yaml]}]}\n"
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["--config", str(config), "status"])
    assert ended.value.code == 0
    assert "node1" in capsys.readouterr().out


def test_a_broken_configuration_is_78_with_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "node.yaml"
    config.write_text("node:\n  nmae: n\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["--config", str(config), "status"])
    assert ended.value.code == 78
    assert f"ppctl: {config}:1: node.control: missing key, or not a text" in capsys.readouterr().err


def test_errors_of_other_keys_do_not_keep_ppctl_from_the_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "node.yaml"
    config.write_text("node:\n  control: ${WHERE}/control\n  name: ${NOT_SET}\n  name: b\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["--config", str(config), "status"])
    assert ended.value.code == 78
    assert f"ppctl: {config}:2: node.control: environment variable 'WHERE'" in capsys.readouterr().err
    config.write_text(config.read_text().replace("${WHERE}", str(tmp_path)))
    with pytest.raises(SystemExit) as ended:
        cli.main(["--config", str(config), "status"])
    assert ended.value.code == 3


def test_demo_becomes_the_demo(ppctl: Ppctl, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[list[str]] = []

    def execv(_path: str, command: list[str]) -> None:
        executed.append(command)

    monkeypatch.setattr(actions.os, "execv", execv)
    assert ppctl("demo", "--keep", "-n", "3", "--help")[0] == 0
    assert executed == [[sys.executable, "-m", "ppdaemon.demo", "--keep", "-n", "3", "--help"]]


def test_the_watch_yields_each_change_and_ends_with_the_daemon(
    serve: Callable[..., ControlServer], socket_dir: Path
) -> None:
    serve(lambda _request: ok(status(pid=1)) + ok(status(pid=2)))
    seen = []
    with pytest.raises(Unavailable, match="has closed the connection"):
        seen.extend(Daemon(socket_dir / "control.sock").watch(tick_s=5))
    reports = Daemon(socket_dir / "control.sock").watch(tick_s=5)
    assert [report and report.pid for report in (next(reports), next(reports))] == [1, 2]
    reports.close()


@pytest.mark.parametrize(
    "command", ["status", "visits", "visit", "workers", "failed", "top", "timeline", "kill"]
)
def test_every_command_explains_itself(ppctl: Ppctl, command: str) -> None:
    code, out, _ = ppctl(command, "--help")
    assert code == 0
    assert f"Usage: ppctl {command}" in out


def test_tables_fit_a_terminal_of_80_columns(
    good: ControlServer, ppctl: Ppctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "PIPE_WIDTH", 80)
    for command in (("visits",), ("failed",), ("workers",), ("visit", "g"), ("timeline", "g"), ("status",)):
        _, out, _ = ppctl(*command)
        for line in out.splitlines():
            assert len(line) <= 80
            assert "…" not in line.rstrip()[:-1]  # only a reason, the last column, is cut


def test_raws_that_no_visit_got_are_listed_with_the_reason(
    serve: Callable[..., ControlServer], ppctl: Ppctl
) -> None:
    refused = {"path": "/raw/a.fits", "kind": "refused.symlink", "reason": "a link out", "seen_tai": 1.8e9}
    serve(lambda request: ok(status(refused_raws=[refused]) if request["type"] == "status" else []))
    assert "1 lately, see ppctl failed" in ppctl("status")[1]
    out = ppctl("failed")[1]
    assert "refused.symlink" in out
    assert "a link out" in out


def test_a_visit_shows_which_datasets_are_those_of_another_detector(
    serve: Callable[..., ControlServer], ppctl: Ppctl
) -> None:
    figures = {"not_exported": "detector 1 was first: \x1b[2Jsummary", "query_ms": 1.0}
    serve(lambda _request: ok([visit(1), visit(2, figures=figures)]))
    out = ppctl("visit", "g")[1]
    assert "detector 2: not exported, detector 1 was first: ?[2Jsummary\n" in out
    assert out.count("not exported") == 1


def test_a_fallback_pipeline_is_marked_in_visits_and_visit(
    serve: Callable[..., ControlServer], ppctl: Ppctl
) -> None:
    figures = {"fallback": {"first": "ApPipe", "reason": "no APDB"}}
    rows = GOOD | {"visit": [visit(1, figures=figures)]}
    rows["visit_summaries"] = [summary(fallbacks=2), summary(group="h")]
    serve(lambda request: ok(rows[request["type"]]))
    out = ppctl("visits")[1]
    assert "fallback pipeline: 2" in out
    assert out.count("fallback") == 1
    assert "ApPipe (fallback)" in ppctl("visit", "g")[1]


def test_why_the_export_fails_is_shown_once(serve: Callable[..., ControlServer], ppctl: Ppctl) -> None:
    problem = PROBLEM | {"source": "export", "text": "export: the repo is away"}
    fields = {"exporter": "failing: the repo is away", "problems": [problem]}
    serve(lambda _request: ok(status(**fields)))
    out = ppctl("status")[1]
    assert out.count("the repo is away") == 1
    assert "failing, see above, " in out


ASKER = {"serving": True, "questions": 41, "batches": 9, "replaced": 0, "late_s": None}
ASKER |= {"wait_p50_ms": 20.4, "wait_p99_ms": 90.0, "memory_mb": 112.4}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "serves, 41 questions answered in 9 batches, 20 ms after they were asked, 99 % within 90 ms"),
        ({"serving": False, "late_s": 12.0}, "late, see above, 41 questions answered"),
        ({"serving": False, "replaced": 2}, "not ready, 41 questions answered"),
        ({"replaced": 2}, ", 112 MB, 2 replaced"),
    ],
)
def test_the_asker_shows_what_it_has_answered(
    changes: dict[str, Any], line: str, serve: Callable[..., ControlServer], ppctl: Ppctl
) -> None:
    serve(lambda _request: ok(status(asker=ASKER | changes)))
    assert line in " ".join(ppctl("status")[1].split())


def test_each_source_of_raws_shows_its_delay(serve: Callable[..., ControlServer], ppctl: Ppctl) -> None:
    source = {"name": "inotify /raw", "live": True, "files": 7, "lag_p50_ms": 1.2, "lag_p99_ms": 14.0}
    serve(lambda _request: ok(status(arrivals=[source])))
    out = " ".join(ppctl("status")[1].split())
    assert "inotify /raw: live, 7 raws found first 1 ms after they were written, 99 % within 14 ms" in out


def test_too_many_open_files_are_an_error_of_the_connection(monkeypatch, tmp_path):
    def failing(*args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("ppdaemon.ctl.controlclient.socket.socket", failing)
    daemon = Daemon(tmp_path / "control.sock")
    for ask in (daemon.status, lambda: next(daemon.watch(1.0))):
        with pytest.raises(Unavailable, match="Too many open files"):
            ask()


def test_all_nodes_are_shown_with_their_problems_without_naming_the_relay(
    serve: Callable[..., ControlServer], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = RelayNodeRow(
        node="n1",
        state="closed",
        connected=True,
        drained=False,
        spare=False,
        capacity=0,
        open=2,
        detectors={"Cam": "0-8"},
        version="1.2.3",
        own_state="degraded",
        problem="the journal cannot be written",
    )
    server = serve(lambda _request: ok([row.model_dump(mode="json")]))
    monkeypatch.setattr(target, "RELAY_RUN", server.path)
    with pytest.raises(SystemExit) as ended:
        cli.main(["hosts"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "closed, degraded" in shown
    assert "n1 degraded: the journal cannot be written" in shown
    assert "1.2.3" in shown
    with pytest.raises(SystemExit) as ended:
        cli.main(["--socket", "/run/ppdaemon/control.sock", "hosts"])
    assert ended.value.code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("needed", "code", "text"),
    [
        (2, ExitCode.OK, "1 may be released"),
        (5, ExitCode.FAILED, "add 2"),
        (None, ExitCode.TRY_LATER, "not known"),
    ],
)
def test_how_many_hosts_are_needed_is_an_exit_code_too(
    serve: Callable[..., ControlServer],
    capsys: pytest.CaptureFixture[str],
    needed: int | None,
    code: ExitCode,
    text: str,
) -> None:
    counts: dict[str, Any] = {
        **dict.fromkeys(("pid", "open_visits", "open_detectors", "ledger_backlog", "tai", "started_tai"), 0),
        **{name: {} for name in ("nodes", "unserved", "switched_off", "spares_suffice", "counters")},
    }
    names = {"relay": "r", "version": "1", "state": "running", "text": "", "ledger": "/l", "ledger_mb": None}
    hosts = {"ready": 3, "slots": 60, "needed": needed, "instruments": ()}
    report = RelayStatusReport(**names, **counts, waits=(), hosts=hosts)
    server = serve(lambda _request: ok(report.model_dump(mode="json")))
    command = ["--relay", "--socket", str(server.path), "hosts", "--needed"]
    assert cli._run(command) == code
    assert text in capsys.readouterr().out
    assert cli._run([*command, "--json"]) == code
    assert json.loads(capsys.readouterr().out)["needed"] == needed


def test_the_socket_of_a_relay_is_looked_for_in_its_folder_below_run_first(
    serve: Callable[..., ControlServer],
    socket_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve(lambda _request: ok([]))
    for run, state in ((server.path, Path("/nowhere")), (socket_dir / "missing", server.path.parent)):
        monkeypatch.setattr(target, "RELAY_RUN", run)
        monkeypatch.setattr(target, "RELAY_STATE", state)
        with pytest.raises(SystemExit) as ended:
            cli.main(["--relay", "hosts"])
        assert (ended.value.code, capsys.readouterr().out) == (0, "no nodes\n")
    server.path.unlink()
    monkeypatch.setattr(target, "RELAY_RUN", socket_dir / "missing")
    with pytest.raises(SystemExit):  # none is there: the one that the help names
        cli.main(["--relay", "hosts"])
    assert str(socket_dir / "missing") in capsys.readouterr().err


def test_a_relay_that_is_down_is_named_by_its_socket_below_run(
    socket_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder below /run is gone with it, and the one with the ledger is closed to others."""
    state = socket_dir / "state"

    def exists(path: Path, *, follow_symlinks: bool = True) -> bool:
        if state in path.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return os.path.exists(path)

    monkeypatch.setattr(Path, "exists", exists)
    monkeypatch.setattr(target, "RELAY_RUN", socket_dir / "run.sock")
    monkeypatch.setattr(target, "RELAY_STATE", state)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--relay", "hosts"])
    assert ended.value.code == ExitCode.UNAVAILABLE
    assert f"{socket_dir / 'run.sock'}: no daemon listens here" in capsys.readouterr().err


def test_commands_that_read_start_without_what_others_need() -> None:
    """Each of these takes 10 to 70 ms of the start, and ``ppctl status`` has 300."""
    program = "import json, sys, ppdaemon.ctl.cli; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    unwanted = {"asyncio", "numpy", "yaml", "zmq", "rich.progress", "ppdaemon.camera", "ppdaemon.messages"}
    assert unwanted.isdisjoint(json.loads(done.stdout))


def test_a_table_of_failures_is_made_without_the_configuration() -> None:
    """Its models take 200 ms, and ``ppctl failed`` and ``ppctl top`` have 500."""
    program = (
        "import sys, ppdaemon.ctl.tables as tables, ppdaemon.reports as reports;"
        "tables.failures_table([reports.VisitRow(instrument='I', group='g', detector=1, attempt=1,"
        " outcome='failed', reason='why', retriable=True)]);"
        "print('ppdaemon.config' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no template in tract 42", "no template in tract 42"),
        ("Müller ☾ \U0001f52d", "Müller ☾ \U0001f52d"),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        ("one\ntwo\u2028three\x85four", "one two three four"),
        ("\x1b[2J\u202e\ud800", "?[2J??"),
        (Outcome.FAILED, "failed"),
        (None, ""),
        (7, "7"),
    ],
)
def test_text_of_others_is_printed_on_one_line_without_control_characters(text: object, shown: str) -> None:
    assert terminal.plain(text) == shown
