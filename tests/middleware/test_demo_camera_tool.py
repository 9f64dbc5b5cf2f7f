# SPDX-License-Identifier: BSD-3-Clause
"""tools/simulate_camera.py as a user runs it, against a relay and a subscriber."""

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from astropy.table import Table
from click.testing import CliRunner

from ppdaemon.demo import simulate as tool
from ppdaemon.demo.delivery import Delivery, NoticeKind, NoticeSender
from ppdaemon.errors import ConfigError, Unavailable

QUICK = ["--speed", "1000", "--exposure", "1", "--camera", "LATISS"]
DEADLINE_MS = 30_000


@contextmanager
def relay(socket_dir, *replies: bytes) -> Iterator[tuple[str, list[dict]]]:
    """Answer submitted events with the given replies, in order."""
    address, events = f"ipc://{socket_dir}/relay", []

    def answer():
        with context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            socket.bind(address)
            for reply in replies:
                if not socket.poll(DEADLINE_MS):
                    return
                *envelope, event = socket.recv_multipart()
                events.append(json.loads(event))
                socket.send_multipart([*envelope, reply])
            socket.poll(200)

    with zmq.Context() as context:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield address, events
        finally:
            thread.join()


def run(raw_root, *arguments):
    return CliRunner().invoke(tool.main, ["--raw-root", str(raw_root), *QUICK, *arguments])


def images_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if ".fits" in path.name)


def accepted() -> bytes:
    return json.dumps({"status": "accepted", "detectors": 1}).encode()


def test_the_tool_announces_then_writes(tmp_path, socket_dir):
    with relay(socket_dir, accepted(), accepted()) as (address, events):
        result = run(tmp_path, "--relay", address, "--visits", "2", "--snaps", "2", "--program", "P1")
    assert result.exit_code == 0, result.output
    assert "4 detector images written" in result.output
    headers = [json.loads(each.read_text()) for each in sorted(tmp_path.rglob("*_R00_S00.json"))]
    assert [each["groupId"] for each in events] == [headers[0]["GROUPID"], headers[2]["GROUPID"]]
    assert {each["survey"] for each in events} == {each["PROGRAM"] for each in headers} == {"P1"}
    assert [each["CURINDEX"] for each in headers] == [1, 2, 1, 2]


def test_a_canceled_visit_has_no_files(tmp_path, socket_dir):
    with relay(socket_dir, accepted(), accepted()) as (address, events):
        result = run(tmp_path, "--relay", address, "--cancel")
    assert result.exit_code == 0, result.output
    assert events[0]["groupId"] == events[1]["groupId"]
    assert "instrument" not in events[1]
    assert list(tmp_path.rglob("*.fits")) == []


@pytest.mark.parametrize(
    ("reply", "status", "message"),
    [
        (b'{"status": "rejected", "reason": "no node"}', 75, "the relay did not accept the event: rejected"),
        (b"hello", 65, "not the answer of a relay; check the address: not JSON"),
        (b"[1]", 65, "not the answer of a relay; check the address: message"),
        (b"\xff\xfe", 65, "not the answer of a relay; check the address: not UTF-8"),
    ],
)
def test_a_relay_that_does_not_accept_ends_the_run(tmp_path, socket_dir, reply, status, message):
    with relay(socket_dir, reply) as (address, _):
        result = run(tmp_path, "--relay", address)
    assert result.exit_code == status
    assert message in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--camera", "FooCam"], 78, "'FooCam'"),
        (["--detectors", "1"], 64, "LATISS has no detector 1"),
        (["--cancel"], 64, "--cancel needs --relay"),
        (["--group", "x" * 65], 64, "group: String should have at most 64 characters"),
        (
            ["--relay", "ipc:///nowhere/relay", "--relay-timeout", "0.1"],
            69,
            "no answer from ipc:///nowhere/relay in 0.1 s",
        ),
        (["--truth", "truth"], 64, "--truth is for science exposures of DemoCam"),
        (["--notices", "foo://x"], 78, "cannot bind 'foo://x'"),
        (["--early", "1"], 64, "--early needs --relay"),
        (["--early", "1", "--late", "1", "--relay", "ipc:///nowhere"], 64, "both --early and --late"),
        (["--cancel", "--late", "1", "--relay", "ipc:///nowhere"], 64, "a canceled visit has no raws"),
        (["--empty", "--truncate", "9"], 64, "--empty cannot be combined with --truncate"),
        (["--empty", "--wrong-header", "group"], 64, "an empty file has no header"),
        (["--faulty", "0"], 64, "no fault is chosen"),
        (["--faulty", "7", "--empty"], 64, "detectors [7] are not read out"),
        (["--drop-detectors", "7"], 64, "detectors [7] are not read out"),
        (["--wrong-header", "detector"], 64, "no other detector"),
        (["--storm", "5", "--layout", "generic"], 64, "--storm needs --layout lsst"),
        (["--camera", "DemoCam", "--filters", "g_01,zz"], 64, "DemoCam has g_01, r_03, i_06, not 'zz'"),
        (["--camera", "DemoCam", "--filters", "g_01,"], 64, "DemoCam has g_01, r_03, i_06, not ''"),
        (["--dec", "nan"], 2, "nan is not a finite number"),
    ],
)
def test_an_impossible_request_ends_with_a_message_and_no_traceback(tmp_path, arguments, status, message):
    result = run(tmp_path, *arguments)
    assert result.exit_code == status, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert images_of(tmp_path) == []


def test_the_truth_is_written_for_each_exposure(tmp_path):
    truth = tmp_path / "truth"
    result = run(tmp_path, "--camera", "DemoCam", "--detectors", "4", "--truth", str(truth))
    assert result.exit_code == 0, result.output
    (path,) = truth.iterdir()
    table = Table.read(path, format="ascii.ecsv")
    assert path.stem == table.meta["obs_id"]
    assert next(tmp_path.rglob("*_R22_S11.fits")).name.startswith(path.stem)
    assert {"transient", "variable"} == set(table["kind"])


def test_an_impossible_value_is_a_usage_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["simulate_camera", "--raw-root", str(tmp_path), "--truncate", "0"])
    with pytest.raises(SystemExit) as ended:
        tool.cli()
    assert ended.value.code == 64
    assert "--truncate" in capsys.readouterr().err


def test_help_lists_every_fault_and_has_examples():
    text = CliRunner().invoke(tool.main, ["--help"]).output
    assert text.count("Fault: ") == 12
    assert "  simulate_camera.py --camera LSSTCam --raw-root" in text


def test_faults_are_combined_and_only_the_chosen_detectors_have_them(tmp_path):
    camera = ["--camera", "LSSTComCam", "--layout", "imsim", "--compression", "fz", "--mode", "reopen"]
    faults = ["--faulty", "0,1", "--no-sidecar", "--truncate", "3000", "--duplicate", "overwrite"]
    rest = ["--drop-detectors", "8", "--slow", "0.01", "--duplicate-after", "0.01"]
    result = run(tmp_path, *camera, *faults, *rest)
    assert result.exit_code == 0, result.output
    assert "8 detector images written" in result.output
    sizes = {path.name: path.stat().st_size for path in images_of(tmp_path)}
    assert len(sizes) == 8
    assert [name for name, size in sizes.items() if size == 3000] == sorted(sizes)[:2]
    assert len(list(tmp_path.rglob("*.json"))) == 6


def test_raws_can_be_written_before_their_visit_and_among_old_files(tmp_path, socket_dir):
    with relay(socket_dir, accepted()) as (address, events):
        result = run(tmp_path, "--relay", address, "--early", "1", "--storm", "7")
    assert result.exit_code == 0, result.output
    assert [line.split()[1] for line in result.output.splitlines()[:3]] == [
        "exposing",
        "written",
        "announced",
    ]
    assert len(events) == 1
    days = {path.parent.parent.name for path in images_of(tmp_path)}
    assert len(days) == 2
    assert len(images_of(tmp_path)) == 8


def test_a_raw_root_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    result = run(tmp_path / "file" / "raws")
    assert result.exit_code == 73
    assert "file" in result.output


def wait_for_subscription(sender, subscriber):
    """Poll both ends in turn: a bound SUB subscribes only while it is polled."""
    for _ in range(DEADLINE_MS // 20):
        subscriber.poll(10)
        try:
            return sender.wait_for_subscriber(0.01)
        except Unavailable:
            continue
    pytest.fail("the subscription never arrived")


@pytest.mark.parametrize("kind", list(NoticeKind))
@pytest.mark.parametrize("bind", [True, False])
def test_the_last_frame_of_each_message_is_the_notice_of_one_file(kind, bind, tmp_path, socket_dir, clock):
    address = f"ipc://{socket_dir}/notices"
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.linger = 0
        subscriber.subscribe(b"")
        if not bind:
            subscriber.bind(address)
        with NoticeSender(address, kind, bind=bind) as sender:
            if bind:
                subscriber.connect(address)
            wait_for_subscription(sender, subscriber)
            Delivery(tmp_path, clock.tai, notices=sender).deliver(Path("a/x.fits"), b"12345", b"{}", 0)
            notices = []
            for _ in range(2):
                assert subscriber.poll(DEADLINE_MS)
                notices.append(json.loads(subscriber.recv_multipart()[-1]))
    names = [
        each["Records"][0]["s3"]["object"]["key"] if kind is NoticeKind.S3 else each["path"]
        for each in notices
    ]
    assert [each.rpartition("x")[2] for each in names] == [".json", ".fits"]


def test_a_missing_subscriber_is_an_error(socket_dir):
    address = f"ipc://{socket_dir}/notices"
    with (
        NoticeSender(address, NoticeKind.PLAIN) as sender,
        pytest.raises(Unavailable, match="no subscriber connected"),
    ):
        sender.wait_for_subscriber(0.05)


def test_an_address_that_cannot_be_used_is_an_error():
    with pytest.raises(ConfigError, match="cannot connect to 'invalid'"):
        NoticeSender("invalid", NoticeKind.S3, bind=False)
