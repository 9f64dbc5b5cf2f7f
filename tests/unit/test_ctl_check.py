# SPDX-License-Identifier: BSD-3-Clause
"""What ``ppctl check`` concludes from what it finds, and that nothing that hangs keeps it."""

import contextlib
import json
import os
import resource
import signal
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from controlserver import status

from ppdaemon.clock import TAI_MINUS_UTC_S
from ppdaemon.config import ArrivalsConfig, NodeConfig, NodePart, RelayLink, SecurityConfig
from ppdaemon.ctl import cli, hostchecks, nodechecks
from ppdaemon.ctl.check import exit_code_of, run_limited
from ppdaemon.ctl.hostchecks import CheckFinding
from ppdaemon.curve import new_key_pair
from ppdaemon.keyfiles import KeyPair, write_key_pair
from ppdaemon.reports import Problem, StatusReport
from ppdaemon.states import ExitCode

NOW = datetime(2026, 11, 29, tzinfo=UTC)
TAI = int(TAI_MINUS_UTC_S)


def levels(findings) -> list[str]:
    return [finding.level for finding in findings]


def test_a_check_that_hangs_is_reported_and_killed(tmp_path: Path) -> None:
    written = tmp_path / "pid"

    def hang():
        written.write_text(str(os.getpid()))
        signal.pause()
        yield

    (found,) = run_limited("state disk", hang, 0.5)
    assert (found.item, found.level, found.text) == ("state disk", "error", "no answer in 0.5 s")
    with contextlib.suppress(ChildProcessError):  # it has been waited for already
        _, status = os.waitpid(int(written.read_text()), 0)
        assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_check_that_crashes_is_reported() -> None:
    def crash():
        os.kill(os.getpid(), signal.SIGKILL)
        yield

    (found,) = run_limited("versions", crash, 10)
    assert (found.level, found.text) == ("error", "the process that checks it crashed")


def test_a_check_that_fails_costs_only_itself() -> None:
    def fail():
        yield CheckFinding(item="disk", level="ok", text="first")
        raise OSError("broken")

    (found,) = run_limited("disk", fail, 10)
    assert found.level == "error"
    assert "OSError: broken" in found.text


def test_findings_come_back_from_the_child() -> None:
    assert run_limited("kernel", lambda: hostchecks.kernel_findings("6.12.0-1"), 10) == [
        CheckFinding(item="kernel", level="ok", text="6.12.0-1")
    ]


@pytest.mark.parametrize(
    ("release", "level"), [("6.18.44-fc", "ok"), ("5.10.0-32-amd64", "warning"), ("4.19.0", "error")]
)
def test_old_kernels_are_found(release: str, level: str) -> None:
    assert levels(hostchecks.kernel_findings(release)) == [level]


def test_lsst_packages_are_of_one_series() -> None:
    assert hostchecks.lsst_finding({"lsst-a": "30.2026.4300", "lsst-b": "30.2026.2700"}).level == "ok"
    mixed = hostchecks.lsst_finding({"lsst-a": "30.2026.4300", "lsst-b": "29.2025.900"})
    assert mixed.level == "error"
    assert "29: lsst-b" in mixed.text
    assert hostchecks.lsst_finding({}).level == "error"


def test_what_is_found_about_versions_has_one_line_for_each_item() -> None:
    items = [found.item for found in hostchecks.check_versions() if found.level == "ok"]
    assert sorted(set(items)) == sorted(items)


@pytest.mark.parametrize(
    ("state", "error_s", "level"),
    [(0, 0.001, "ok"), (5, 16.0, "warning"), (0, 0.5, "warning"), (-1, 0, "skipped")],
)
def test_a_clock_that_nobody_corrects_is_found(state: int, error_s: float, level: str) -> None:
    assert hostchecks.synchronized_finding(state, error_s).level == level


@pytest.mark.parametrize(
    ("kernel_s", "table_s", "days", "level"),
    [
        (TAI, TAI, 300, "ok"),
        (0, TAI, 300, "ok"),
        (TAI, TAI, 10, "warning"),
        (TAI, TAI, -10, "warning"),
        (TAI + 1, TAI, 300, "error"),
        (0, TAI + 1, 300, "error"),
    ],
)
def test_all_count_the_same_leap_seconds(kernel_s: int, table_s: int, days: int, level: str) -> None:
    assert levels(hostchecks.tai_findings(kernel_s, table_s, NOW + timedelta(days), NOW)) == [level]


def test_the_clocks_of_this_host_can_be_read() -> None:
    assert [found.item for found in hostchecks.check_clock()] == ["clock", "TAI"]


def test_a_full_ram_disk_is_an_error() -> None:
    assert hostchecks.ramdisk_finding(Path("/r"), 100, 50, 40, 2).level == "ok"
    assert hostchecks.ramdisk_finding(Path("/r"), 100, 30, 40, 2).level == "error"
    assert hostchecks.ramdisk_finding(Path("/r"), 0, 0, 40, 2).level == "ok"  # no limit


@pytest.mark.parametrize(
    ("kind", "free", "level"),
    [("ext4", 0.5, "ok"), ("ext4", 0.05, "warning"), ("nfs4", 0.5, "error"), ("fuse.sshfs", 0.5, "error")],
)
def test_the_state_is_on_a_local_disk_with_room(kind: str, free: float, level: str) -> None:
    assert hostchecks.state_disk_finding(Path("/s"), kind, free).level == level


def test_a_folder_for_outputs_that_wait_is_writable_and_has_room_for_their_limit(config, tmp_path) -> None:
    def found(**export):
        export = config.export.model_copy(update=export)
        return levels(hostchecks.check_spill(config.model_copy(update={"export": export})))

    assert found() == []
    assert found(spill=tmp_path) == ["ok"]
    assert found(spill=tmp_path, spill_max=10**18) == ["warning"]


def test_slow_writes_are_found() -> None:
    assert hostchecks.fsync_finding([0.001, 0.2, 0.002]).level == "ok"
    assert hostchecks.fsync_finding([0.2, 0.3, 0.001]).level == "warning"


def test_roots_that_cannot_be_watched_are_errors() -> None:
    assert hostchecks.root_finding("/raw", "nfs4", "auto", "").level == "ok"
    assert hostchecks.root_finding("/raw", "nfs4", "inotify", "").level == "error"
    assert hostchecks.root_finding("/raw", "ext4", "auto", "EMFILE").level == "error"
    limits = {"watches": 1000, "instances": 128}
    assert hostchecks.watches_finding(400, limits, complete=True).level == "ok"
    assert hostchecks.watches_finding(600, limits, complete=False).level == "warning"


def test_limits_below_the_need_of_all_workers_are_found() -> None:
    found = hostchecks.limit_findings(100, {"files": 1024, "processes": resource.RLIM_INFINITY})
    assert levels(found) == ["warning", "ok"]


def test_lines_of_check_config_become_findings() -> None:
    lines = "ppdaemon: warning: a.yaml:3: log: odd\n"
    found = list(nodechecks.configuration_findings(0, "a.yaml: valid, node n\n", lines))
    assert levels(found) == ["warning", "ok"]
    assert found[0].text == "a.yaml:3: log: odd"
    wrong = list(nodechecks.configuration_findings(78, "", "ppdaemon: a.yaml:3: x: unknown key\n"))
    assert (wrong[0].level, exit_code_of(wrong)) == ("error", ExitCode.CONFIG)
    dropped = nodechecks.configuration_findings(1, "a.yaml: valid, node n\n", "ppdaemon: rule 1 is dropped\n")
    assert levels(dropped) == ["warning"]


def test_the_exit_code_is_that_of_the_worst_finding() -> None:
    def code(*found: str) -> ExitCode:
        return exit_code_of([CheckFinding(item="disk", level=level, text="") for level in found])

    assert code("ok", "warning", "skipped") == ExitCode.OK
    assert code("ok", "error") == ExitCode.FAILED


def test_a_plan_for_tonight_without_inputs_is_an_error() -> None:
    good = nodechecks.plan_finding("Cam", "g", 4, 0, json.dumps({"distinct_datasets": 7}), "")
    assert (good.level, "7 datasets" in good.text) == ("ok", True)
    output = json.dumps({"detectors": [{"reason": "no flat"}], "fallbacks": []})
    bad = nodechecks.plan_finding("Cam", "g", 4, 1, output, "")
    assert (bad.level, "no flat" in bad.text) == ("error", True)
    away = nodechecks.plan_finding("Cam", "g", 4, 69, "", "ppdaemon: database away\n")
    assert (away.level, "database away" in away.text) == ("error", True)


def test_a_zygote_has_one_thread() -> None:
    assert nodechecks.zygote_finding(1).level == "ok"
    assert nodechecks.zygote_finding(2).level == "error"


def with_keys(key: Path | None, server: Path | None) -> NodeConfig:
    """Return the part of a configuration that has keys."""
    return NodeConfig.model_construct(
        node=NodePart.model_construct(name="node1"),
        security=SecurityConfig.model_construct(key=key, insecure=False),
        relay=RelayLink.model_construct(address="tcp://127.0.0.1:1", server=server),
        arrivals=ArrivalsConfig.model_construct(subscribe=()),
    )


def test_keys_that_do_not_belong_together_or_that_others_can_read_are_errors(tmp_path: Path) -> None:
    pairs = [new_key_pair() for _ in range(3)]
    secret, public = write_key_pair(tmp_path, "node1", pairs[0])
    assert levels(nodechecks.check_keys(with_keys(secret, public))) == ["ok", "ok"]
    mixed, _ = write_key_pair(tmp_path, "mixed", KeyPair(pairs[1].public, pairs[2].secret))
    (found,) = nodechecks.check_keys(with_keys(mixed, None))
    assert (found.level, "not that of the secret one" in found.text) == ("error", True)
    secret.chmod(0o644)
    (found, _) = nodechecks.check_keys(with_keys(secret, tmp_path / "missing.key"))
    assert (found.level, "users other than its owner" in found.text) == ("error", True)
    assert levels(nodechecks.check_keys(with_keys(None, None))) == ["ok"]


def test_a_relay_that_does_not_listen_or_is_another_program_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodechecks, "CONNECT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        config = with_keys(None, None).model_copy(
            update={"relay": RelayLink.model_construct(address=f"tcp://127.0.0.1:{port}")}
        )
        (found,) = nodechecks.check_relay(config)
    assert (found.level, "no relay has answered" in found.text) == ("error", True)
    monkeypatch.setattr(nodechecks, "CONNECT_S", 40.0)  # however late its refusal is seen
    (found,) = nodechecks.check_relay(config)
    assert (found.level, "refused" in found.text) == ("error", True)


def test_problems_of_the_daemon_and_limits_that_nobody_enforces_are_found() -> None:
    problems = (
        Problem(source="journal", text="cannot be written", since_tai=0.0, degrades=True),
        Problem(source="leftovers", text="a folder", since_tai=0.0, degrades=False),
        Problem(source="export", text="export: the repo is away", since_tai=0.0, degrades=True),
    )
    limits = {"memory": "8 GB, supervisor; not by the kernel: no group", "wall time": "900 s"}
    report = StatusReport.model_validate(status()).model_copy(
        update={"state": "degraded", "problems": problems, "limits": limits}
    )
    found = list(nodechecks.daemon_findings(report))
    assert [(each.item, each.level) for each in found] == [
        ("daemon", "warning"),
        ("daemon", "error"),
        ("daemon", "warning"),
        ("daemon", "error"),
        ("cgroup", "warning"),
    ]
    assert found[1].text == "journal: cannot be written"
    assert found[3].text == "export: the repo is away"
    assert "kernel: memory;" in found[4].text


def test_another_user_is_warned() -> None:
    assert nodechecks.user_finding(Path("/s"), 0, 0).level == "ok"
    assert nodechecks.user_finding(Path("/s"), 0, 12345).level == "warning"


def test_a_file_with_errors_is_reported_by_key_and_the_host_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("node: {nam: hand}\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["--socket", str(tmp_path / "none"), "check", "--config", str(path), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert ended.value.code == ExitCode.CONFIG
    assert report["schema_version"] == 1
    found = {each["item"]: each["level"] for each in report["findings"]}
    assert (found["configuration"], found["kernel"]) == ("error", "ok")
    assert any("node: unknown key" in each["text"] for each in report["findings"])
