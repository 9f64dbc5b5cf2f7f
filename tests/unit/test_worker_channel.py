# SPDX-License-Identifier: BSD-3-Clause
"""The worker's end of its channel, with a packet socket in place of the supervisor."""

import socket

import pytest

from ppdaemon import messages
from ppdaemon.errors import BadMessage
from ppdaemon.wire import encode
from ppdaemon.worker.channel import Channel
from ppdaemon.worker.main import fitting


@pytest.fixture
def ends():
    supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisor, worker:
        yield supervisor, Channel(worker, messages.ORDERS)


def test_orders_are_received_whatever_was_received_before(ends):
    supervisor, channel = ends
    orders = [
        messages.GiveUp(reason="a reason that is longer than the next order"),
        messages.Cross(),
        messages.Process(exposures=(1, 2)),
    ]
    for order in orders:
        supervisor.send(encode(order))
    assert [channel.receive() for _ in orders] == orders


def test_the_end_of_the_supervisor_is_no_order(ends):
    supervisor, channel = ends
    supervisor.close()
    assert channel.receive() is None


@pytest.mark.parametrize(
    ("packet", "kind"),
    [
        (b"no JSON", "field"),
        (b'{"type": "cross", "unknown": 1}', "field"),
        (b'{"type": "done", "outcome": "succeeded"}', "field"),
        (b" " * (messages.PACKET_LIMIT + 1), "size"),
    ],
)
def test_what_is_no_order_is_refused(ends, packet, kind):
    supervisor, channel = ends
    supervisor.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * messages.PACKET_LIMIT)
    supervisor.send(packet)
    with pytest.raises(BadMessage) as caught:
        channel.receive()
    assert caught.value.kind == kind


@pytest.mark.parametrize("names", [1, 50])
def test_a_report_of_an_export_fits_into_a_packet(names):
    spools = [f"/var/lib/ppdaemon/node/spool/LSSTCam~2026-11-22T03%3A25%3A16.951~{n}~1" for n in range(210)]
    note = "detector 3 was first: " + ", ".join(f"visit_level_output_{n}" for n in range(names))
    notes = dict.fromkeys(spools, note)
    report = messages.Exported(spools=tuple(spools), tai=1.0, datasets=9, skipped=notes, given_up=notes)
    given_up = messages.ImagesGivenUp(spools=dict.fromkeys(spools, note), size_bytes=1)
    sent, sent_given_up = fitting(report), fitting(given_up)
    for each in (sent, sent_given_up):
        assert len(encode(each)) <= messages.PACKET_LIMIT
    for short in (sent.skipped, sent.given_up, sent_given_up.spools):
        assert short.keys() == set(spools)
        assert {text[:60] for text in short.values()} == {note[:60]}
    assert (sent == report) == (sent_given_up == given_up) == (names == 1)
