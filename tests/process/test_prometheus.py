# SPDX-License-Identifier: BSD-3-Clause
"""Metrics of running daemons, also as a real Prometheus has them; the workers are scripted."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from node import make_node, running

from ppdaemon.testing.played import ClientSockets
from ppdaemon.testing.relay import RelayProcess, SubmitClient
from ppdaemon.testing.telescope import free_port
from ppdaemon.testing.waiting import wait_until

ETC = Path(__file__).parents[2] / "etc"
TIMEOUT_S = 30.0
PROMETHEUS = shutil.which("prometheus")


class Prometheus:
    """A server with the example configuration, at other addresses and with a short interval."""

    def __init__(self, folder: Path, targets: dict[str, str]):
        folder.mkdir()
        config = yaml.safe_load((ETC / "prometheus" / "scrape.yaml").read_text())
        config["global"] = dict.fromkeys(config["global"], "200ms")
        config["rule_files"] = [str(ETC / "prometheus" / name) for name in config["rule_files"]]
        for job in config["scrape_configs"]:
            job["static_configs"] = [{"targets": [targets.pop(job["job_name"])]}]
        assert not targets
        self.address = f"127.0.0.1:{free_port()}"
        self._log = folder / "log"
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    PROMETHEUS,
                    f"--config.file={folder}/prometheus.yml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address={self.address}",
                ],
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(TIMEOUT_S)

    def ask(self, path: str, **parameters: str):
        """Return the data of an answer; an error of Prometheus is one of the test."""
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return json.load(answer)["data"]

    def values(self, query: str, label: str) -> dict[str, float]:
        """Return the values of a query by one label."""
        found = self.ask("query", query=query)["result"]
        return {each["metric"].get(label, ""): float(each["value"][1]) for each in found}

    def is_up(self) -> bool:
        try:
            return self.values("up", "job") == {"ppdaemon": 1.0, "pprelay": 1.0}
        except OSError:  # it starts
            assert self._process.poll() is None, self.story()
            return False

    def story(self) -> str:
        return self._log.read_text()


@contextmanager
def observed_node(folder: Path, sockets: Path):
    targets = {name: f"127.0.0.1:{free_port()}" for name in ("ppdaemon", "pprelay")}
    relay = RelayProcess(sockets, metrics={"listen": targets["pprelay"]})
    node = make_node(folder, sockets, None, max=9)
    node.config["relay"]["address"] = relay.nodes
    node.config["metrics"] = {"listen": targets["ppdaemon"]}
    prometheus = Prometheus(folder / "prometheus", targets)
    try:
        with relay.start(), node.start(), ClientSockets() as wires:
            node.wait(lambda: node.status().relay_connected)
            wait_until(prometheus.is_up, TIMEOUT_S, prometheus.story)
            yield node, SubmitClient(wires, relay.submit), prometheus
    finally:
        prometheus.stop()


def expressions() -> list[str]:
    """Return the expressions of the dashboard, with values for Grafana's variables."""
    dashboard = json.loads((ETC / "grafana" / "ppdaemon.json").read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return [each.replace("$__rate_interval", "1m").replace("$instance", ".*") for each in found]


def lines_at(address: str) -> list[str]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_S) as answer:
        return answer.read().decode().splitlines()


def test_the_client_library_is_not_imported_without_metrics():
    script = "import sys, ppdaemon.node.supervisor, ppdaemon.relay.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "ppdaemon.metricsserver" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith("prometheus_client")]


def test_a_relay_serves_its_metrics_after_a_reload(socket_dir):
    with RelayProcess(socket_dir).start() as relay:
        address = f"127.0.0.1:{free_port()}"
        relay.configure(metrics={"listen": address})
        relay.process.send_signal(signal.SIGHUP)
        wait_until(lambda: relay.events("metrics are served"), TIMEOUT_S, relay.log.read_text)
        lines = lines_at(address)
        assert 'ppdaemon_relay_unserved_detectors{instrument="DemoCam"} 9.0' in lines
        assert 'ppdaemon_relay_nodes{state="ready"} 0.0' in lines
        relay.configure(metrics={})
        relay.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(relay.events("reloaded")) == 2, TIMEOUT_S, relay.log.read_text)
        wait_until(lambda: is_closed(address), TIMEOUT_S)


def is_closed(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) != 0


@pytest.mark.slow
def test_a_reload_switches_metrics_on_and_an_occupied_port_is_a_problem(tmp_path, socket_dir):
    with running(tmp_path, socket_dir) as node, socket.create_server(("127.0.0.1", 0)) as occupied:
        address = f"127.0.0.1:{occupied.getsockname()[1]}"
        node.rewrite(metrics={"listen": address})
        node.process.send_signal(signal.SIGHUP)
        text = f"metrics cannot be served at {address}: "
        node.wait(lambda: text in str(node.status().problem_texts))
        occupied.close()
        node.wait(lambda: text not in str(node.status().problem_texts))
        lines = lines_at(address)
        assert 'ppdaemon_build_info{node="n1",' in "\n".join(lines)
        assert "ppdaemon_config_generation 2.0" in lines
        assert "ppdaemon_relay_connected 1.0" in lines


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is missing (Debian: apt install prometheus)")
def test_prometheus_has_the_values_of_the_status(tmp_path, socket_dir):
    with observed_node(tmp_path, socket_dir) as (node, client, prometheus):
        client.announce("g1", nimages=1)
        for detector in range(9):
            node.land("g1", detector)
        client.announce("g2", nimages=1, survey="ignore")
        node.wait(lambda: node.status().outcomes == {"succeeded": 9, "ignored": 9})
        node.wait(lambda: not node.status().spooled)

        status = node.status()
        expected = {
            ("ppdaemon_outcomes_total > 0", "outcome"): {"succeeded": 9, "ignored": 9},
            ("ppdaemon_state == 1", "state"): {status.state: 1},
            ("ppdaemon_slots > 0", "state"): dict(status.slots),
            ("ppdaemon_build_info", "version"): {status.version: 1},
            ("ppdaemon_slots_max + ppdaemon_capacity + ppdaemon_config_generation", ""): {"": 9 + 9 + 1},
            ("ppdaemon_open + ppdaemon_queued + ppdaemon_spooled", ""): {"": 0},
            ('{__name__=~"ppdaemon_.*_seconds_count"}', "__name__"): {
                "ppdaemon_announce_to_prepared_seconds_count": 9,
                "ppdaemon_raw_to_started_seconds_count": 9,
                "ppdaemon_started_to_done_seconds_count": 9,
                "ppdaemon_shutter_to_alerts_seconds_count": 9,
                "ppdaemon_export_seconds_count": 9,
                "ppdaemon_asker_wait_seconds_count": 0,  # scripted workers ask nothing
            },
            ("ppdaemon_relay_permits_total", "answer"): {"granted": 9, "refused": 0},
            ("ppdaemon_relay_nodes == 1", "state"): {"ready": 1},
            ("ppdaemon_relay_open_detectors", ""): {"": 0},
        }

        def differing() -> dict[str, dict[str, float]]:
            found = {query: prometheus.values(*query) for query in expected}
            return {query[0]: found[query] for query in expected if found[query] != expected[query]}

        # Relay and node are read at different times, and have the values of the last second.
        wait_until(lambda: not differing(), TIMEOUT_S, differing)

        def rules() -> list[dict[str, Any]]:
            return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

        assert {rule["health"] for rule in rules()} == {"ok"}
        assert len(rules()) == (ETC / "prometheus" / "ppdaemon-rules.yaml").read_text().count("- alert:")
        # g2 has waited for g1 a moment, which an evaluation may have seen: the next one does not.
        wait_until(lambda: not any(rule["alerts"] for rule in rules()), TIMEOUT_S, rules)
        for expression in expressions():
            prometheus.ask("query", query=expression)
