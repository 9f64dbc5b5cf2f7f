# SPDX-License-Identifier: BSD-3-Clause
"""The publisher of a real node: telemetry reaches those who take it, and nothing waits for the others."""

import json
import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafkacluster import kafka_cluster
from node import running
from restproxyserver import RestProxyServer, rest_proxy

from ppdaemon.publish.messages import BUNDLES, Bundle
from ppdaemon.reports import ReloadRequest
from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.processes import descendants, title
from ppdaemon.testing.waiting import TIMEOUT_S

TOPIC = "lsst.prompt.visitDetector"


@pytest.fixture
def proxy() -> Iterator[RestProxyServer]:
    with rest_proxy() as server:
        yield server


@contextmanager
def publishing(folder: Path, sockets: Path, *to: dict[str, Any]) -> Iterator[NodeProcess]:
    with running(folder, sockets, publish=list(to)) as node:
        yield node


def seconds_of(node: NodeProcess, group: str) -> float:
    """Process a visit; return how long its outcome took."""
    begin = time.monotonic()
    node.succeed(group)
    return time.monotonic() - begin


def publisher_of(node: NodeProcess) -> int | None:
    return next((pid for pid in descendants(node.process.pid) if title(pid) == "ppdaemon publisher"), None)


def test_outcomes_reach_a_topic_and_metrics_a_rest_proxy(
    tmp_path: Path, socket_dir: Path, proxy: RestProxyServer
) -> None:
    with kafka_cluster() as cluster:
        kafka = {"what": "telemetry", "to": f"kafka://{cluster.brokers}/outcomes"}
        rest = {"what": ".*_metrics", "to": proxy.url, "format": "avro"}
        with publishing(tmp_path, socket_dir, kafka, rest) as node:
            # As a worker leaves them beside its spool.
            content = {"action": [{"metric": "m", "value": 2.5, "unit": "s"}], "__dataset_identifier": "Live"}
            bundle = Bundle(
                id=uuid.uuid4(), run="r", dataset_type="a_metrics", data_id={}, utc=1.0, content=content
            )
            file = node.state / "publish" / "DemoCam~g1~0~1.json"
            file.write_bytes(BUNDLES.dump_json((bundle,)))
            node.succeed("g1")
            ((key, value),) = cluster.read("outcomes", 1)
            telemetry = json.loads(value)
            assert key == "DemoCam 0"
            assert (telemetry["group"], telemetry["outcome"]) == ("g1", "succeeded")
            assert (telemetry["node"], telemetry["exposures"]) == (node.status().node, 1)
            assert 0 < telemetry["prepare_s"] < 60
            node.wait(lambda: proxy.records("lsst.prompt.action"))
            assert proxy.records("lsst.prompt.action")[0]["m"] == 2.5
            node.wait(lambda: [each.sent for each in node.status().publish] == [1, 1])
            assert not file.exists()


@pytest.mark.slow
def test_metrics_that_cannot_be_read_do_not_end_the_publisher(
    tmp_path: Path, socket_dir: Path, proxy: RestProxyServer
) -> None:
    to = {"what": [".*_metrics", "telemetry"], "to": proxy.url}
    with publishing(tmp_path, socket_dir, to) as node:
        node.wait(lambda: publisher_of(node) is not None)
        first = publisher_of(node)
        odd = {"action": [{"metric": "m"}]}
        bundle = Bundle(id=uuid.uuid4(), run="r", dataset_type="a_metrics", data_id={}, utc=1.0, content=odd)
        file = node.state / "publish" / "DemoCam~g1~0~1.json"
        file.write_bytes(BUNDLES.dump_json((bundle,)))
        node.succeed("g1")
        node.wait(lambda: proxy.records(TOPIC))
        damaged = node.state / "publish" / "DemoCam~g2~0~1.json"
        damaged.write_bytes(b"[{")
        node.succeed("g2")
        node.wait(lambda: len(proxy.records(TOPIC)) == 2)
        assert publisher_of(node) == first
        assert not file.exists()
        assert not damaged.exists()
        log = (node.state / "logs" / "publisher.log").read_text()
        assert f"{damaged.name} cannot be read, its metrics are not published: " in log


def test_a_stuck_endpoint_delays_no_outcome_and_no_stop(
    tmp_path: Path, socket_dir: Path, proxy: RestProxyServer
) -> None:
    """Fault 75: nobody takes telemetry; it is dropped with a count, and nothing waits."""
    to = {"what": "telemetry", "to": proxy.url, "queue": 2, "timeout_s": 600}
    with publishing(tmp_path, socket_dir, to) as node:
        first = seconds_of(node, "g0")
        node.wait(lambda: node.status().publish[0].sent == 1)
        proxy.hanging.clear()
        times = [seconds_of(node, f"g{number}") for number in range(1, 6)]
        assert max(times) < max(10 * first, 5.0)
        # One is being sent, two wait.
        node.wait(lambda: node.status().publish[0].dropped == 2)
        assert node.status().publish[0].waiting == 3
        node.wait(lambda: node.status().spooled == 0)
        begin = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - begin < 15


@pytest.mark.slow
def test_a_refusing_endpoint_is_a_problem_that_does_not_degrade(
    tmp_path: Path, socket_dir: Path, proxy: RestProxyServer
) -> None:
    proxy.status = 503
    with publishing(tmp_path, socket_dir, {"what": "telemetry", "to": proxy.url}) as node:
        node.succeed("g1")
        text = f"publish: telemetry to {proxy.url}: 1 waiting, 0 dropped: "
        node.wait(lambda: any(each.startswith(text) for each in node.status().problem_texts))
        assert node.status().state == "running"
        proxy.status = 200
        node.wait(lambda: proxy.records(TOPIC))
        node.wait(lambda: not node.status().problem_texts)


@pytest.mark.slow
def test_a_killed_publisher_is_replaced(tmp_path: Path, socket_dir: Path, proxy: RestProxyServer) -> None:
    with publishing(tmp_path, socket_dir, {"what": "telemetry", "to": proxy.url}) as node:
        node.succeed("g1")
        node.wait(lambda: node.status().publish[0].sent == 1)
        killed = publisher_of(node)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        node.wait(lambda: publisher_of(node) not in (None, killed))
        node.succeed("g2")
        node.wait(lambda: node.status().publish[0].sent == 2)
        assert [each["group"] for each in proxy.records(TOPIC)] == ["g1", "g2"]
        assert node.status().publish[0].dropped == 0


def test_a_stop_publishes_the_last_outcomes(tmp_path: Path, socket_dir: Path, proxy: RestProxyServer) -> None:
    with publishing(tmp_path, socket_dir, {"what": "telemetry", "to": proxy.url}) as node:
        for number in range(3):
            node.succeed(f"g{number}")
        assert node.stop() == 0
    assert [each["group"] for each in proxy.records(TOPIC)] == ["g0", "g1", "g2"]


@pytest.mark.slow
def test_a_reload_keeps_the_publisher_and_what_waits_in_it(
    tmp_path: Path, socket_dir: Path, proxy: RestProxyServer
) -> None:
    proxy.status = 503
    with publishing(tmp_path, socket_dir, {"what": "telemetry", "to": proxy.url}) as node:
        node.succeed("g1")
        node.wait(lambda: node.status().publish[0].waiting == 1)
        first = node.wait(lambda: publisher_of(node))
        node.rewrite(engine={"no_return": ["new"]}, log={"level": "WARNING"})
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        node.succeed("g2")
        proxy.status = 200
        node.wait(lambda: node.status().publish[0].sent == 2)
        assert [each["group"] for each in proxy.records(TOPIC)] == ["g1", "g2"]
        assert publisher_of(node) == first
        assert node.status().publish[0].dropped == 0


@pytest.mark.slow
def test_a_reload_with_another_place_publishes_there_and_sends_what_waits_to_the_old_one(
    tmp_path: Path, socket_dir: Path, proxy: RestProxyServer
) -> None:
    proxy.status = 503
    to = {"what": "telemetry", "to": proxy.url}
    with publishing(tmp_path, socket_dir, to) as node, rest_proxy() as other:
        node.succeed("g1")
        first = node.wait(lambda: publisher_of(node))
        node.wait(lambda: "HTTP 503" in node.status().publish[0].problem)
        node.config["publish"] = [to | {"to": other.url}]
        node.rewrite()
        node.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        node.succeed("g2")
        node.wait(lambda: node.status().publish[0].sent == 1)
        proxy.status = 200
        node.wait(lambda: proxy.records(TOPIC))
        assert [each["group"] for each in other.records(TOPIC)] == ["g2"]
        assert [each["group"] for each in proxy.records(TOPIC)] == ["g1"]
        assert publisher_of(node) == first
