# SPDX-License-Identifier: BSD-3-Clause
"""The programs pprelay and send_visit.py as a user runs them: output, exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from ppdaemon.ctl.client import RelayDaemon
from ppdaemon.testing.played import ClientSockets, PlayedNode
from ppdaemon.testing.relay import RelayProcess
from ppdaemon.testing.waiting import wait_until

ROOT = Path(__file__).parents[2]


def run(*command, env=None, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", **(env or {})}
    return subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def send_visit(*arguments, **options):
    return run(sys.executable, ROOT / "tools" / "send_visit.py", *arguments, **options)


@pytest.fixture
def relay(socket_dir):
    with RelayProcess(socket_dir).start() as made:
        yield made


# --- pprelay ------------------------------------------------------------------


def test_check_config_reports_a_valid_file(socket_dir):
    relay = RelayProcess(socket_dir)
    found = run(*relay.command("check-config"))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == f"{relay.config}: valid; instruments: DemoCam\n"


@pytest.mark.slow
def test_every_error_of_a_configuration_is_listed_with_its_line(socket_dir):
    relay = RelayProcess(socket_dir)
    relay.config.write_text(
        "submit: 5570\nnodez: tcp://*:1\nstate_dir: /proc/x\ninstruments: {}\nresend_s: 0\n"
    )
    for action in ("run", "check-config"):
        found = run(*relay.command(action))
        assert found.returncode == 78
        lines = found.stderr.splitlines()
        assert [line.removeprefix(f"pprelay: {relay.config}:").split(":")[:2] for line in lines] == [
            ["1", " submit"],
            ["2", " nodez"],
            ["4", " instruments"],
            ["5", " resend_s"],
        ]


@pytest.mark.slow
def test_a_missing_file_and_a_wrong_word_have_their_exit_codes(tmp_path):
    module = (sys.executable, "-m", "ppdaemon.relay.app")
    missing = run(*module, "--config", tmp_path / "none.yaml")
    assert missing.returncode == 78
    assert "none.yaml: cannot be read" in missing.stderr
    for words in (("dance", "--config", "x"), (), ("--color",)):
        found = run(*module, *words)
        assert found.returncode == 64
        assert "Traceback" not in found.stderr
    help_text = run(*module, "--help")
    assert help_text.returncode == 0
    assert "check-config" in help_text.stdout


def test_a_second_relay_on_the_same_state_directory_is_refused(relay):
    found = run(*relay.command())
    assert found.returncode == 75
    last = found.stderr.splitlines()[-1]
    other = f"another pprelay (pid {relay.process.pid})"
    assert last == f"pprelay: {other} uses state_dir {relay.state_dir}; stop it first"


@pytest.mark.slow
def test_a_port_that_is_taken_or_an_unknown_address_is_a_clear_error(socket_dir):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        relay = RelayProcess(socket_dir, submit=f"tcp://127.0.0.1:{port}")
        found = run(*relay.command())
        assert found.returncode == 75
        assert f"submit: cannot listen on tcp://127.0.0.1:{port}: the port is in use" in found.stderr
        relay = RelayProcess(socket_dir, nodes="tcp://no-such-interface:5571", security={"insecure": True})
        found = run(*relay.command())
        assert found.returncode == 69
        assert "nodes: cannot listen on tcp://no-such-interface:5571" in found.stderr
        assert "Traceback" not in found.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_soon(relay, number):
    assert relay.stop(number) == 0
    assert relay.events()[-1] == "stopped"
    assert relay.stop_duration_s() < 5.0


@pytest.mark.slow
def test_a_corrupt_ledger_is_moved_aside_at_the_start(socket_dir):
    relay = RelayProcess(socket_dir)
    relay.state_dir.mkdir()
    (relay.state_dir / "ledger.sqlite").write_bytes(b"rubbish" * 5000)
    with relay.start():
        wait_until(lambda: relay.events("ledger is corrupt"))  # it listens before it opens the ledger
        assert send_visit("--relay", relay.submit, "--instrument", "DemoCam").returncode == 0
        (aside,) = relay.state_dir.glob("ledger.corrupt-*.sqlite")
        assert str(aside) in str(RelayDaemon(relay.control).status().problems)
        aside.rename(socket_dir / aside.name)
        wait_until(lambda: str(aside) not in str(RelayDaemon(relay.control).status().problems))


def test_it_listens_on_tcp_with_a_port_of_the_systems_choice(socket_dir):
    with RelayProcess(socket_dir, submit="tcp://127.0.0.1:*", nodes="tcp://127.0.0.1:*").start() as relay:
        events = [json.loads(line) for line in relay.log.read_text().splitlines()]
        addresses = {event["socket"]: event["address"] for event in events if event["event"] == "listening"}
        found = send_visit("--relay", addresses["submit"], "--instrument", "DemoCam", "--group", "g")
        assert (found.returncode, found.stdout) == (0, "accepted: g, 9 detectors, no node serves 0-8 now\n")


# --- send_visit.py ----------------------------------------------------------------


@pytest.mark.slow
def test_a_visit_of_a_file_is_sent_and_a_second_time_is_a_duplicate(relay, tmp_path):
    file = tmp_path / "visit.json"
    file.write_text(json.dumps({"groupId": "g", "instrument": "DemoCam", "position": "[10.5, -30.0]"}))
    assert (
        send_visit(file, "--relay", relay.submit).stdout
        == "accepted: g, 9 detectors, no node serves 0-8 now\n"
    )
    again = send_visit(file, "--relay", relay.submit, "--json")
    assert json.loads(again.stdout)["status"] == "duplicate"
    assert again.returncode == 0
    piped = send_visit("-", "--relay", relay.submit, input=file.read_text())
    assert piped.stdout == "duplicate: g, 9 detectors, no node serves 0-8 now\n"


def test_a_refused_visit_and_a_bad_file_end_with_65(relay, tmp_path):
    refused = send_visit("--instrument", "HSC", "--group", "g", "--relay", relay.submit)
    assert refused.returncode == 65
    assert refused.stdout == "rejected: g, instrument 'HSC' is not one of DemoCam\n"
    (tmp_path / "bad.json").write_text("{")
    bad = send_visit(tmp_path / "bad.json", "--relay", relay.submit)
    assert bad.returncode == 65
    assert bad.stderr.startswith("send_visit: ")
    assert "not JSON" in bad.stderr


def test_without_a_relay_it_ends_with_69_and_one_line(socket_dir):
    address = f"ipc://{socket_dir}/unused"
    found = send_visit("--instrument", "DemoCam", "--relay", address, "--timeout", "0.3")
    assert found.returncode == 69
    text = "check address and pprelay, and whether it needs keys (--key, --server)"
    assert found.stderr == f"send_visit: no answer from {address} in 0.3 s: {text}\n"
    assert send_visit("--instrument", "X", "--relay", "invalid").returncode == 69


def test_neither_nor_both_ways_of_saying_what_to_send_is_a_usage_error(tmp_path):
    for words in ((), (tmp_path / "x.json", "--instrument", "X"), ("--cancel", "g", "--ra", "1")):
        found = send_visit(*words)
        assert found.returncode == 64
        assert "use either" in found.stderr


def test_waiting_shows_the_outcomes_and_succeeds_if_all_did(relay):
    with ClientSockets() as wires:
        node = PlayedNode(wires, relay.nodes, "n1")
        node.wait_for("welcome")
        words = ("--instrument", "DemoCam", "--group", "g", "--relay", relay.submit, "--wait")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
        with subprocess.Popen(
            [sys.executable, ROOT / "tools" / "send_visit.py", *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as sender:
            order = node.wait_for("visit")[0]
            node.ack(order)
            node.finish(order)
            node.wait_for("results_seen")
            output, _ = sender.communicate(timeout=30)
    assert sender.returncode == 0
    assert output.startswith("accepted: g, 9 detectors\n")
    assert "9 of 9 detectors ended: 9 succeeded" in output
    assert output.count("succeeded") == 10


def test_a_cancelled_visit_ends_a_wait_and_was_what_the_canceller_wanted(relay):
    assert send_visit("--instrument", "DemoCam", "--group", "g", "--relay", relay.submit).returncode == 0
    cancelled = send_visit("--cancel", "g", "--relay", relay.submit, "--wait", "--json")
    assert cancelled.returncode == 0
    answer = json.loads(cancelled.stdout)
    assert {found["outcome"] for found in answer["outcomes"]} == {"cancelled"}
    waited = send_visit("--instrument", "DemoCam", "--group", "g", "--relay", relay.submit, "--wait")
    assert waited.returncode == 1
    remembered = send_visit("--cancel", "unknown", "--relay", relay.submit)
    assert remembered.returncode == 0
    assert "if it arrives within 60 s" in remembered.stdout


@pytest.mark.slow
def test_a_wait_that_takes_too_long_ends_with_75(relay):
    found = send_visit("--instrument", "DemoCam", "--relay", relay.submit, "--wait", "--timeout", "3")
    assert found.returncode == 75
    assert "0 of 9 detectors ended" in found.stdout
    assert found.stdout.count("under way") == 9


@pytest.mark.slow
def test_a_stale_event_expires_in_the_ledger_if_no_node_serves_it(socket_dir):
    # Longer than a program takes to start and send.
    with RelayProcess(socket_dir, expiry_s=4.0).start() as relay:
        assert send_visit("--instrument", "DemoCam", "--group", "g", "--relay", relay.submit).returncode == 0

        def expired():
            found = send_visit("--instrument", "DemoCam", "--group", "g", "--relay", relay.submit, "--wait")
            return "9 expired" in found.stdout

        wait_until(expired, 30.0)


def test_the_shown_configuration_starts_with_only_the_paths_and_ports_changed(socket_dir):
    relay = RelayProcess(socket_dir)
    text = (ROOT / "etc" / "pprelay.yaml").read_text(encoding="utf-8")
    fields = yaml.safe_load(text)
    for key in ("submit", "nodes", "control", "state_dir"):
        text = text.replace(str(fields[key]), str(getattr(relay, key)))
    relay.config.write_text(text, encoding="utf-8")
    with relay.start():
        pass
