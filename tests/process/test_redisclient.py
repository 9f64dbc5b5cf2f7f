# SPDX-License-Identifier: BSD-3-Clause
"""The node's client of Redis with a real server; a test plays the node's decisions."""

import asyncio
import re
import subprocess
import time
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from redisserver import RedisServer, redis_server

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig
from ppdaemon.ctl.nodechecks import check_redis
from ppdaemon.messages import (
    DetectorsOfVisit,
    PermitRefused,
    Permitted,
    ReserveVisit,
    ResultEntry,
    ResultsSeen,
    Welcome,
)
from ppdaemon.node.visits import redisclient, redisgroup
from ppdaemon.node.visits.model import RelayLost
from ppdaemon.node.visits.redisclient import FIRST_PAUSE_S, RedisClient
from ppdaemon.node.visits.redisgroup import RedisGroup
from ppdaemon.redisserver import name_mark, open_server, shadow_mark
from ppdaemon.states import Outcome
from ppdaemon.testing.node import node_config
from ppdaemon.testing.telescope import free_port
from ppdaemon.testing.waiting import TIMEOUT_S

STREAM, GROUP = "instrument:democam", "ppdaemon"


@pytest.fixture(scope="module")
def running(tmp_path_factory, module_leaves_nothing):
    with redis_server(tmp_path_factory.mktemp("r")) as server:
        yield server


@pytest.fixture
def server(running):
    running.ask("FLUSHALL")
    running.ask("CONFIG", "RESETSTAT")
    return running


@pytest.fixture
def config(server, tmp_path, socket_dir):
    """Return a function that makes a configuration; its keys are those of the part ``redis``."""

    def make(name="n1", shadow=False, **keys):
        made = node_config(tmp_path, socket_dir, shadow={"enabled": shadow})
        state = tmp_path / f"state of {name}"
        state.mkdir(exist_ok=True)
        made["node"] |= {"name": name, "state_dir": str(state), "instruments": {"DemoCam": "0-4"}}
        made["redis"] = {"url": server.url, "streams": [STREAM], "claim_after_s": 1.0} | keys
        return NodeConfig.model_validate(made)

    return make


def message(group="g", detector=0, **fields):
    visit = {
        "groupId": group,
        "instrument": "DemoCam",
        "detector": detector,
        "private_sndStamp": Clock().tai(),
    }
    return {name: str(value) for name, value in (visit | fields).items()}


class Node:
    """A client, and what it has sent to the decisions."""

    def __init__(self, config, clock=None):
        self.messages = []
        self.count = Counter()
        self.accepts = True
        self.client = RedisClient(config, "run", clock or Clock(), self._receive, self.count, lambda: 0)

    def _receive(self, message):
        self.messages.append(message)
        if isinstance(message, ReserveVisit) and self.accepts:
            self.client.send_accepted(message, message.detectors)

    def of(self, kind):
        return [each for each in self.messages if isinstance(each, kind)]

    @property
    def reserved(self):
        return [(each.visit.group, detector) for each in self.of(ReserveVisit) for detector in each.detectors]

    async def until(self, condition):
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, (self.messages, self.count, self.client.text)
            await asyncio.sleep(0.01)

    def end(self, group="g", detector=0, *, returned=None, attempt=1):
        outcome = Outcome.CANCELLED if returned else Outcome.SUCCEEDED
        names = {"instrument": "DemoCam", "group": group, "detector": detector, "attempt": attempt}
        self.client.send_results([ResultEntry(**names, outcome=outcome, returned=returned)])

    def ask(self, group="g", detector=0):
        names = {"instrument": "DemoCam", "group": group, "attempt": 1, "detectors": (detector,)}
        self.client.ask_permits([DetectorsOfVisit(**names)])


@asynccontextmanager
async def connected(*configs, clock=None):
    nodes = [Node(config, clock) for config in configs]
    running = [asyncio.create_task(node.client.run()) for node in nodes]
    try:
        for node in nodes:
            await node.until(lambda node=node: node.client.connected)
        yield nodes if len(nodes) > 1 else nodes[0]
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def pending(server, consumer=None):
    """Return how many entries are pending, by consumer or of one."""
    consumers = server.ask("XPENDING", STREAM, GROUP)["consumers"]
    found = {each["name"].decode(): each["pending"] for each in consumers}
    return found if consumer is None else found.get(consumer, 0)


def deliver(server, consumer, count=100):
    """Let another consumer take entries, and end."""
    with server.client() as client:
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        client.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=count)


async def test_an_entry_is_acknowledged_after_its_outcome_and_not_before(server, config):
    server.add(STREAM, message(detector=0), message(detector=1), message(detector=9))
    async with connected(config()) as node:
        await node.until(lambda: len(node.reserved) == 2)
        assert node.reserved == [("g", 0), ("g", 1)]
        assert isinstance(node.messages[0], Welcome)
        assert pending(server, "n1") == 3  # with one that is not served here
        node.end(detector=0)
        await node.until(lambda: node.of(ResultsSeen))
        assert node.of(ResultsSeen)[0].entries == (("DemoCam", "g", 0, 1),)
        assert pending(server, "n1") == 2
        assert node.client.report().held == 1
        # The same entry, written once more, is not processed by another node.
        assert server.ask("GET", "ppdaemon:permit:DemoCam:g:0") == b"n1"


async def test_garbage_is_counted_acknowledged_and_stops_nothing(server, config):
    server.add(
        STREAM,
        {"any": "thing"},
        message(detector="R22_S11"),
        {name: text for name, text in message().items() if name != "detector"},
        message(instrument=""),
        message(private_sndStamp=Clock().tai() - 4000),
        {b"groupId": b"\xff\xfe"},
        message("good"),
    )
    async with connected(config()) as node:
        await node.until(lambda: node.reserved)
        assert node.reserved == [("good", 0)]
        await node.until(lambda: pending(server, "n1") == 1)
        assert node.count == {
            "bad_message.field": 2,
            "bad_message.redis_detector": 1,
            "bad_message.redis_text": 1,
            "redis_refused": 2,
        }


async def test_visits_of_another_instrument_are_for_other_nodes(server, config):
    server.add(STREAM, message(instrument="LATISS"), message())
    async with connected(config()) as node:
        await node.until(lambda: node.reserved)

        def is_left():
            with server.client() as client:
                return client.xpending_range(STREAM, GROUP, "-", "+", 9, idle=10**8)

        await node.until(is_left)
        assert pending(server, "n1") == 2
        assert not node.count


async def test_a_reservation_that_an_error_has_cost_is_repeated(server, config, monkeypatch):
    monkeypatch.setattr(redisclient, "ANSWER_S", 0.1)
    async with connected(config()) as node:
        node.accepts = False
        server.add(STREAM, message())
        await node.until(lambda: len(node.reserved) > 1)
        node.accepts = True
        await node.until(lambda: not node.client._held.unanswered(STREAM, float("inf")))
        assert node.client.report().held == 1


async def test_a_second_node_of_the_same_name_takes_nothing(server, config, tmp_path):
    server.add(STREAM, message())
    async with connected(config()) as node:
        await node.until(lambda: node.reserved)
        (tmp_path / "elsewhere").mkdir()
        chosen = config()
        other = chosen.node.model_copy(update={"state_dir": tmp_path / "elsewhere"})
        text = await failing_text(chosen.model_copy(update={"node": other}))
        assert "another node has the name n1" in text
        # It has hung for so long that another one has the name now.
        server.ask("SET", name_mark(STREAM, GROUP, "n1"), "other")
        node.ask()
        await node.until(lambda: node.of(RelayLost))
        assert not node.of(Permitted)


async def test_a_server_that_refuses_a_later_command_is_left_alone_between_attempts(server, config, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("x")
    server.ask("ACL", "SETUSER", "pp", "reset", "on", ">x", "~*", "+@all", "-xclaim")
    began = time.monotonic()
    server.add(STREAM, message())
    async with connected(config(user="pp", password=str(secret))) as node:
        await node.until(lambda: len(node.of(RelayLost)) == 4)
    pauses = [FIRST_PAUSE_S * 2**number for number in range(3)]
    assert time.monotonic() - began > sum(pauses)


async def test_a_new_group_begins_with_entries_that_are_not_expired(server, config):
    with server.client() as client:
        for number in range(50):
            client.xadd(STREAM, message("old"), id=f"{int(time.time() - 4000) * 1000}-{number + 1}")
    server.add(STREAM, message("new"))
    async with connected(config()) as node:
        await node.until(lambda: node.reserved == [("new", 0)])
        assert not node.count["redis_refused"]


async def test_a_host_whose_clock_is_wrong_ends_no_visit(server, config):
    server.add(STREAM, message())
    async with connected(config(), clock=Clock(tai=lambda: Clock().tai() + 86_400)) as node:
        await node.until(lambda: node.reserved)
        (reserved,) = node.of(ReserveVisit)
        assert 0 <= reserved.sent_tai - reserved.received_tai < 60


async def test_no_more_is_taken_than_slots_are_idle(server, config):
    server.add(STREAM, *(message(f"g{number}") for number in range(12)))
    async with connected(config()) as node:
        await node.until(lambda: len(node.reserved) == 6)  # workers.max
        assert pending(server) == {"n1": 6}
        node.end("g0")
        node.end("g1")
        await node.until(lambda: len(node.reserved) == 8)
        assert node.client.report().held == 6
        node.client.set_capacity(8)
        await node.until(lambda: len(node.reserved) == 10)


async def test_own_entries_are_read_again_after_each_connection(server, config):
    server.add(STREAM, message())
    async with connected(config()) as node:
        await node.until(lambda: node.reserved)
    async with connected(config()) as again:
        # At once, and not when they are found to be unknown.
        assert again.reserved == [("g", 0)]
        server.ask("CLIENT", "KILL", "TYPE", "normal")
        await again.until(lambda: len(again.of(Welcome)) == 2)
        assert len(again.of(RelayLost)) == 1
        assert again.reserved == [("g", 0)] * 2


async def test_an_entry_whose_reply_was_lost_is_found_as_pending(server, config):
    async with connected(config(claim_after_s=600.0)) as node:
        # As if the server had delivered it here; in one step, or the node, which waits, would get it.
        with server.client() as client, client.pipeline() as pipe:
            pipe.xadd(STREAM, message())
            pipe.xreadgroup(GROUP, "n1", {STREAM: ">"})
            assert pipe.execute()[1]
        await node.until(lambda: node.reserved == [("g", 0)])


async def test_what_a_living_node_renews_is_not_taken_and_what_a_dead_one_had_is(server, config):
    server.add(STREAM, message("dead"), message("permitted"), message("unserved", 7))
    deliver(server, "ghost")
    server.ask("SET", "ppdaemon:permit:DemoCam:permitted:0", "ghost")
    # Three seconds: on a busy machine all nodes of this process stand still for a second.
    configs = [config(name, claim_after_s=3.0) for name in ("n1", "n2")]
    async with connected(*configs) as (first, second):
        server.add(STREAM, message("alive"))
        nodes = (first, second)
        await first.until(lambda: sum(("alive", 0) in node.reserved for node in nodes) == 1)
        await first.until(lambda: sum(("dead", 0) in node.reserved for node in nodes) == 1)
        # Of these two, only one takes what the other could have for as long.
        (taken,) = (each for node in nodes for each in node.of(ReserveVisit) if each.visit.group == "dead")
        assert taken.attempt == 2
        holder = first if ("alive", 0) in first.reserved else second
        until = time.monotonic() + 6.5  # twice `claim_after_s`
        await first.until(lambda: time.monotonic() > until)
        assert sum(("alive", 0) in node.reserved for node in nodes) == 1
        assert sum(("dead", 0) in node.reserved for node in nodes) == 1
        assert pending(server, "ghost") == 2
        holder.end("alive")
        await holder.until(lambda: holder.of(ResultsSeen))


async def test_nobody_looks_dead_after_a_time_without_a_server(config, socket_dir):
    with redis_server(socket_dir, keeps=True) as own:
        own.add(STREAM, message())
        deliver(own, "living")

        def passes():
            """Return how often the node has looked for entries since the server's start."""
            found = own.ask("INFO", "commandstats").get("cmdstat_xinfo|groups", {"calls": 0})
            return found["calls"] - 1  # the first one is that of the connection

        async with connected(config(url=own.url, claim_after_s=3.0)) as node:
            own.stop()
            await node.until(lambda: node.of(RelayLost))
            until = time.monotonic() + 3.2  # more than `claim_after_s`
            await node.until(lambda: time.monotonic() > until)
            own.start()
            await node.until(lambda: len(node.of(Welcome)) == 2)
            await node.until(lambda: passes() > 0)
            assert not node.count["redis_claimed"]
            assert pending(own, "living") == 1


async def test_only_one_node_gets_the_permit_and_its_outcome_counts(server, config):
    async with connected(config("n1"), config("n2")) as (first, second):
        server.add(STREAM, message())
        await first.until(lambda: first.reserved or second.reserved)
        owner, other = (first, second) if first.reserved else (second, first)
        owner.ask()
        await owner.until(lambda: owner.of(Permitted))
        owner.ask()  # an answer that was lost
        other.ask()
        await other.until(lambda: other.of(PermitRefused))
        await owner.until(lambda: len(owner.of(Permitted)) == 2)
        assert not owner.of(PermitRefused)
        assert owner.of(Permitted)[0].incarnation == "run"
        other.end()
        await other.until(lambda: other.of(ResultsSeen))
        assert other.of(ResultsSeen)[0].moved == (("DemoCam", "g", 0, 1),)
        assert sum(pending(server).values()) == 1
        owner.end()
        await owner.until(lambda: owner.of(ResultsSeen))
        assert not owner.of(ResultsSeen)[0].moved
        assert not pending(server)


async def test_a_returned_visit_gives_up_its_permit_and_is_taken_again(server, config):
    async with connected(config(claim_after_s=600.0)) as node:
        server.add(STREAM, message())
        await node.until(lambda: node.reserved)
        node.ask()
        await node.until(lambda: node.of(Permitted))
        node.end(returned=True)
        await node.until(lambda: node.of(ResultsSeen))
        await node.until(lambda: len(node.reserved) == 2)
        assert node.of(ReserveVisit)[1].attempt > 1
        assert not server.ask("EXISTS", "ppdaemon:permit:DemoCam:g:0")


async def test_what_a_node_refuses_at_present_is_for_others_until_its_capacity_changes(server, config):
    async with connected(config()) as node:
        server.add(STREAM, message())
        await node.until(lambda: node.reserved)
        node.client.send_refused(node.of(ReserveVisit)[0], [0], "by order of the test", final=False)

        def is_left():
            with server.client() as client:
                return client.xpending_range(STREAM, GROUP, "-", "+", 9, idle=10**8)

        await node.until(is_left)
        before = server.ask("INFO", "commandstats")["cmdstat_xinfo|groups"]["calls"]
        await node.until(
            lambda: server.ask("INFO", "commandstats")["cmdstat_xinfo|groups"]["calls"] > before + 1
        )
        assert len(node.reserved) == 1
        node.client.set_capacity(5)
        await node.until(lambda: len(node.reserved) == 2)
        node.client.send_refused(node.of(ReserveVisit)[1], [0], "by order of the test", final=True)
        await node.until(lambda: not pending(server))


def test_nobody_has_a_permit_without_an_answer_of_the_server(tmp_path, socket_dir, config):
    with redis_server(socket_dir) as own:

        async def body():
            async with connected(config(url=own.url)) as node:
                own.add(STREAM, message())
                await node.until(lambda: node.reserved)
                own.stop()
                node.ask()
                node.end()
                await node.until(lambda: node.of(RelayLost))
                node.ask()
                assert not node.of(Permitted)
                assert not node.of(ResultsSeen)
                own.start()  # without its data
                await node.until(lambda: len(node.of(Welcome)) == 2)
                own.add(STREAM, message("next"))
                await node.until(lambda: ("next", 0) in node.reserved)

        asyncio.run(body())


async def test_old_entries_are_trimmed_and_their_pending_ones_ended(server, config):
    old = f"{int(time.time() - 90_000) * 1000}-0"
    with server.client() as client:
        # Whole nodes of the stream are deleted: more than a hundred entries.
        for number in range(300):
            client.xadd(STREAM, message(), id=f"{old[:-1]}{number}")
    server.add(STREAM, message("new", 1))
    deliver(server, "ghost", 1)
    async with connected(config(trim_after_s=86_400.0)) as node:
        await node.until(lambda: server.ask("XLEN", STREAM) < 150)
        await node.until(lambda: node.reserved == [("new", 1)])
        await node.until(lambda: pending(server) == {"n1": 1})


async def test_an_entry_that_was_deleted_before_it_was_read_is_acknowledged(server, config):
    (deleted,) = server.add(STREAM, message())
    deliver(server, "n1")
    server.ask("XDEL", STREAM, deleted)
    async with connected(config()) as node:
        await node.until(lambda: not pending(server))
        assert node.count["redis_trimmed"] == 1


async def test_dead_consumers_are_deleted_when_nothing_of_theirs_is_pending(server, config, monkeypatch):
    monkeypatch.setattr(redisclient, "DEAD_S", 0.0)
    monkeypatch.setattr(redisclient, "TIDY_S", 0.1)
    server.add(STREAM, message("kept", 9))
    deliver(server, "ghost")
    with server.client() as client:
        client.xgroup_createconsumer(STREAM, GROUP, "gone")
    async with connected(config()) as node:

        def names():
            with server.client() as client:
                return {each["name"] for each in client.xinfo_consumers(STREAM, GROUP)}

        await node.until(lambda: b"gone" not in names())
        assert b"ghost" in names()


async def test_a_consumer_that_has_taken_an_entry_since_is_not_deleted(server, config):
    server.add(STREAM, message())
    deliver(server, "ghost")
    group = RedisGroup(config(), "identity")
    group.open()
    await group.delete_consumers(STREAM, ["ghost"])
    assert [each["name"] for each in await group.consumers(STREAM)] == [b"ghost"]
    await group.close()


async def test_a_node_that_drains_takes_nothing_more(server, config, monkeypatch):
    monkeypatch.setattr(redisgroup, "BLOCK_MS", 60_000)
    async with connected(config()) as node:
        await node.until(lambda: server.ask("INFO", "clients")["blocked_clients"] == 1)
        node.client.set_accepting(False)
        await node.until(lambda: server.ask("INFO", "clients")["blocked_clients"] == 0)
        assert not node.of(RelayLost)  # as after the time limit of an answer
        server.add(STREAM, message())
        with server.client() as client:
            assert client.xreadgroup(GROUP, "n2", {STREAM: ">"})
        node.client.set_accepting(True)
        server.add(STREAM, message("next"))
        await node.until(lambda: node.reserved == [("next", 0)])


async def failing_text(config):
    """Return the text of the problem, while a node tries to connect."""
    node = Node(config)
    running = asyncio.create_task(node.client.run())
    deadline = time.monotonic() + TIMEOUT_S
    while not node.count["redis_connection"]:
        assert time.monotonic() < deadline, node.messages
        await asyncio.sleep(0)
    text = node.client.text
    running.cancel()  # while it closes the connection
    await asyncio.gather(running, return_exceptions=True)
    assert not node.of(Welcome)
    return text


def failing(config):
    """Return the text of the problem, while a node tries to connect."""
    return asyncio.run(failing_text(config))


async def test_a_shadow_deletes_nothing_of_the_present_service(server, config):
    with server.client() as client:
        for number in range(300):
            client.xadd(STREAM, message(), id=f"1000-{number}")
        client.xgroup_create(STREAM, "present", id="0")
    async with connected(config(shadow=True)) as node:
        await node.until(lambda: "cmdstat_xinfo|consumers" in server.ask("INFO", "commandstats"))
        assert server.ask("XLEN", STREAM) == 300


def test_another_group_of_the_stream_needs_the_shadow_mode(server, config):
    with server.client() as client:
        client.xgroup_create(STREAM, "present", id="0", mkstream=True)
    assert "has another group, present" in failing(config())
    assert [each.level for each in check_redis(config())] == ["error", "warning"]
    server.add(STREAM, message())

    async def body():
        async with connected(config(shadow=True, group="mine")) as node:
            await node.until(lambda: node.reserved)
            node.ask()
            await node.until(lambda: node.of(Permitted))
            assert not server.ask("EXISTS", "ppdaemon:permit:DemoCam:g:0")
        # The shadow does not keep a real node of the present group from working.
        async with connected(config("n2", group="present")) as node:
            await node.until(lambda: node.reserved)
            node.ask()
            await node.until(lambda: node.of(Permitted))
        assert server.ask("EXISTS", shadow_mark(STREAM, "mine"))

    asyncio.run(body())
    present = config(group="present")
    assert [each.level for each in check_redis(present)] == ["ok", "warning"]  # a crash costs all permits
    server.ask("CONFIG", "SET", "appendonly", "yes")
    assert [each.level for each in check_redis(present)] == ["ok"]
    server.ask("CONFIG", "SET", "appendonly", "no")


def test_a_second_group_ends_the_reading_until_it_is_deleted_and_one_that_watches_does_not(server, config):
    async def body():
        async with connected(config(watching_groups=["monitor"])) as node:
            with server.client() as client:
                client.xgroup_create(STREAM, "monitor", id="0")
                client.xgroup_create(STREAM, "other", id="$")
            await node.until(lambda: not node.client.connected)
            assert f"delete it (XGROUP DESTROY {STREAM} other)" in node.client.text
            server.add(STREAM, message())
            server.ask("XGROUP", "DESTROY", STREAM, "other")
            await node.until(lambda: node.reserved == [("g", 0)])
            assert node.client.connected

    asyncio.run(body())
    assert [each.level for each in check_redis(config())] == ["error", "warning"]
    assert [each.level for each in check_redis(config(watching_groups=["monitor"]))] == ["ok", "warning"]


@pytest.mark.parametrize("shadow", [True, False])
def test_a_group_has_one_mode(server, config, shadow):
    server.add(STREAM, message())
    deliver(server, "other")
    if not shadow:
        server.ask("SET", shadow_mark(STREAM, GROUP), "other")
    assert "whose visits this node would take" in failing(config(shadow=shadow))


def test_a_shadow_takes_nothing_of_a_group_whose_consumers_are_away(server, config):
    with server.client() as client:
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    assert "whose visits this node would take" in failing(config(shadow=True))
    assert not server.ask("EXISTS", shadow_mark(STREAM, GROUP))


async def test_a_shadow_of_a_few_detectors_acknowledges_all_others(server, config):
    server.add(STREAM, *(message(detector=number) for number in range(4, 9)))
    async with connected(config(unserved="acknowledge", shadow=True)) as node:
        await node.until(lambda: node.reserved == [("g", 4)])
        await node.until(lambda: pending(server) == {"n1": 1})
        assert node.count["redis_unserved"] == 4


async def test_several_streams_are_read(server, config):
    async with connected(config(streams=["block:0", "block:1"])) as node:
        server.add("block:1", message(detector=1))
        server.add("block:0", message(detector=0))
        await node.until(lambda: sorted(node.reserved) == [("g", 0), ("g", 1)])


def test_the_password_is_read_with_each_connection(server, config, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("wrong\n")
    server.ask("ACL", "SETUSER", "pp", "reset", "on", ">right", "~*", "+@all")
    chosen = config(user="pp", password=str(secret))
    assert "invalid username-password" in failing(chosen)
    (finding,) = check_redis(chosen)
    assert finding.level == "error"
    secret.write_text("right\n")

    async def body():
        async with connected(chosen):
            pass

    asyncio.run(body())


async def test_a_user_without_the_right_to_tidy_takes_visits_nevertheless(server, config, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("x")
    page = (Path(__file__).parents[2] / "doc" / "operators" / "redis.rst").read_text()
    listed = page.partition("Commands that a user needs:")[2].partition("; and to tidy")[0]
    rights = [f"+{name}" for name in re.findall(r"``(\w+)``", listed)]
    server.ask("ACL", "SETUSER", "pp", "reset", "on", ">x", f"~{STREAM}", "~ppdaemon:*", *rights)
    async with connected(config(user="pp", password=str(secret))) as node:
        await node.until(lambda: node.count["redis_tidy"])
        server.add(STREAM, message(), message(detector=1))
        await node.until(lambda: len(node.reserved) == 2)
        node.ask()
        await node.until(lambda: node.of(Permitted))
        node.end(returned=True)
        node.end(detector=1)
        await node.until(lambda: len(node.of(ResultsSeen)) == 2)
        await node.until(lambda: len(node.reserved) == 3)
        assert not node.of(RelayLost)


def test_the_certificate_of_a_server_is_verified(config, socket_dir):
    made = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("server", "other"):
        files = ("-keyout", str(socket_dir / f"{name}.key"), "-out", str(socket_dir / f"{name}.crt"))
        names = ("-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1")
        subprocess.run([*made, *files, *names], check=True, capture_output=True)
    port = free_port()
    own = RedisServer(socket_dir)
    files = ("--tls-cert-file", socket_dir / "server.crt", "--tls-key-file", socket_dir / "server.key")
    own.start("--tls-port", port, *files, "--tls-auth-clients", "no")
    try:
        for ca, levels in (("server", ["ok", "warning"]), ("other", ["error"])):
            keys = {"url": f"rediss://127.0.0.1:{port}", "ca": str(socket_dir / f"{ca}.crt")}
            assert [each.level for each in check_redis(config(**keys))] == levels
    finally:
        own.stop()


def test_the_check_of_a_server_that_is_away_says_so(config):
    (finding,) = check_redis(config(url="redis://127.0.0.1:1"))
    assert finding.level == "error"
    assert "redis://127.0.0.1:1" in finding.text


async def test_commands_are_not_repeated_by_the_library(config):
    async with open_server(config(url="redis://127.0.0.1:1").redis, "n1") as server:
        assert server.get_retry().get_retries() == 0
        with pytest.raises(redis.ConnectionError):
            await server.ping()
