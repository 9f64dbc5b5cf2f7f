# SPDX-License-Identifier: BSD-3-Clause
"""Which notices a new run of a node needs again, and what it keeps of a bridge on disk."""

import asyncio
import json

import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.clock import Clock
from ppdaemon.config import Publisher
from ppdaemon.messages import ASK_LIMIT, ASK_NOTICES, Notices
from ppdaemon.node.arrivals.bridges import BridgeLink, Position, Positions
from ppdaemon.node.arrivals.counts import ErrorCounts
from ppdaemon.testing.waiting import TIMEOUT_S
from ppdaemon.wire import decode, encode

TIMES = st.floats(0, 1e6)


@pytest.mark.parametrize(
    ("position", "open_since", "age_s"),
    [
        (Position(), None, 900.0),  # a new node
        (Position(), 950.0, 950.0),
        (Position("e", 7, 990.0), None, 910.0),
        (Position("e", 7, 100.0), None, 1800.0),  # it was down for long
        (Position("e", 7, 990.0), 700.0, 1200.0),
        (Position("e", 7, 1050.0), 1060.0, 900.0),  # the clock was set back
    ],
)
def test_what_may_have_been_in_memory_only_is_taken_again(position, open_since, age_s):
    assert position.age_s(1000.0, open_since, 900.0) == age_s


@given(TIMES, TIMES, st.none() | TIMES)
def test_a_notice_within_the_time_before_each_open_visit_is_needed(now, taken, open_since):
    age_s = Position("e", 1, taken).age_s(now, open_since, 900.0)
    for since in (now, taken, open_since):
        assert since is None or age_s >= now - since + 900.0 - 1e-6


def test_positions_are_kept_and_written_only_if_they_change(tmp_path):
    path = tmp_path / "bridges.json"
    positions = Positions(path)
    assert positions.of == {}
    positions.save()
    assert not path.exists()
    positions.of["tcp://b:1"] = Position("e", 7, 10.5)
    positions.save()
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    path.unlink()
    positions.save()
    assert not path.exists()
    positions.of["tcp://b:2"] = Position("f", 1, 11.0)
    positions.save()
    assert Positions(path).of == positions.of


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"a": 1}',
        '{"a": {"number": 1, "more": 2}}',
        '{"a": {"epoch": "e", "number": 1, "taken_tai": null}}',
        '{"a": {"epoch": "e", "number": "many", "taken_tai": 1.0}}',
        '{"a": {"epoch": "e", "number": 1, "taken_tai": NaN}}',
        "\xff",
    ],
)
def test_a_file_that_is_none_is_a_new_node(tmp_path, content, caplog):
    path = tmp_path / "bridges.json"
    path.write_text(content, encoding="latin-1")
    positions = Positions(path)
    assert positions.of == {}
    assert "cannot be read" in caplog.text
    positions.of["tcp://b:1"] = Position("e", 7, 10.5)
    positions.save()
    assert json.loads(path.read_bytes())["tcp://b:1"]["number"] == 7


async def test_the_next_notices_are_asked_for_before_those_that_came_are_taken(socket_dir, tmp_path):
    address, clock, room, taken = f"ipc://{socket_dir}/nodes", Clock(), asyncio.Event(), asyncio.Queue()
    positions = Positions(tmp_path / "bridges.json")
    with zmq.asyncio.Context() as context, context.socket(zmq.ROUTER) as bridge:
        bridge.bind(address)
        link = BridgeLink(
            context,
            Publisher(address=address),
            None,
            "n1",
            positions,
            900.0,
            900.0,
            taken.put_nowait,
            room.wait,
            ErrorCounts(clock.mono),
            clock,
        )
        task = asyncio.create_task(link.run())
        async with asyncio.timeout(TIMEOUT_S):
            peer, data = await bridge.recv_multipart()
            ask = decode(data, ASK_NOTICES, limit=ASK_LIMIT)
            assert (ask.epoch, ask.number, ask.age_s) == ("", 0, 900.0)
            head = Notices(request=ask.request, epoch="e", first=1)
            await bridge.send_multipart([peer, encode(head), b"a", b"b"])
            ask = decode((await bridge.recv_multipart())[1], ASK_NOTICES, limit=ASK_LIMIT)
            assert (ask.epoch, ask.number, ask.age_s) == ("e", 2, None)
            # A crash needs them once more.
            assert taken.empty()
            assert not positions.of
            room.set()
            assert [await taken.get(), await taken.get()] == [[b"a"], [b"b"]]
            await asyncio.sleep(0)
            assert positions.of[address].number == 2
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
