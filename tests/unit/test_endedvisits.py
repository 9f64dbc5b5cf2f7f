# SPDX-License-Identifier: BSD-3-Clause
"""The outcomes that a hello lists: those that another node must not process again, and not too many."""

import pytest

from ppdaemon.messages import NODE_LIMIT, Hello, ResultEntry
from ppdaemon.node.visits import endedvisits
from ppdaemon.node.visits.endedvisits import EndedVisits
from ppdaemon.states import Outcome
from ppdaemon.wire import encode


def entry(group, detector=0, outcome=Outcome.SUCCEEDED, **fields):
    return ResultEntry(
        instrument="DemoCam", group=group, detector=detector, outcome=outcome, **{"attempt": 1} | fields
    )


def listed(ended):
    return {
        (each.group, each.attempt, each.outcome, each.reported): each.detectors for each in ended.listed()
    }


def test_outcomes_are_listed_by_visit_and_what_was_returned_is_not():
    ended = EndedVisits(100.0)
    ended.add([entry("a"), entry("a", 1), entry("a", 2, Outcome.FAILED, attempt=4, asked=3)], 0.0)
    ended.add([entry("b", outcome=Outcome.CANCELLED, returned=True)], 0.0)
    assert listed(ended) == {
        ("a", 1, Outcome.SUCCEEDED, False): (0, 1),
        ("a", 3, Outcome.FAILED, False): (2,),
    }
    ended.confirm([("DemoCam", "a", 0, 1), ("DemoCam", "x", 0, 1)], [("DemoCam", "a", 1, 1)])
    assert listed(ended) == {
        ("a", 1, Outcome.SUCCEEDED, True): (0,),
        ("a", 3, Outcome.FAILED, False): (2,),
    }


def test_the_nodes_own_number_is_listed_only_if_it_differs():
    ended = EndedVisits(100.0)
    ended.add([entry("a"), entry("a", 1, attempt=2, asked=1)], 0.0)
    assert {each.detectors: each.last for each in ended.listed()} == {(0,): None, (1,): 2}


def test_old_visits_are_forgotten_and_the_message_is_far_below_its_limit():
    ended = EndedVisits(100.0)
    ended.add([entry("old")], 0.0)
    ended.add([entry("new")], 101.0)
    assert [each.group for each in ended.listed()] == ["new"]
    for number in range(endedvisits.MAX_VISITS + 10):
        ended.add((entry(f"2026-11-29T11:30:{number}", detector) for detector in range(205)), 102.0)
    assert len(ended.listed()) == endedvisits.MAX_VISITS
    hello = Hello(
        origin="n1",
        sent_tai=0.0,
        sequence=1,
        incarnation="r",
        instruments={},
        capacity=1,
        ended=ended.listed(),
    )
    assert len(encode(hello)) < 700_000


@pytest.mark.parametrize("name", ["2026-11-22T03:25:16.951", "v" * 200, "\N{GREEK SMALL LETTER ALPHA}" * 200])
def test_a_hello_with_all_outcomes_is_below_the_limit_of_a_relay(name):
    """A larger one would never arrive, and the node could not connect again. Detectors of one outcome would
    share an entry.
    """
    outcomes = tuple(Outcome)[:4]
    ended = EndedVisits(1e9)
    for number in range(500):
        ended.add(
            (
                ResultEntry(
                    instrument="LSSTCam",
                    group=f"{name}{number}"[-200:],
                    detector=detector,
                    attempt=detector % 2 + 1,
                    outcome=outcomes[detector % len(outcomes)],
                )
                for detector in range(205)
            ),
            0.0,
        )
    listed = ended.listed()
    assert f"{name}499"[-200:] in {each.group for each in listed}, "the newest are listed"
    hello = Hello(
        **{
            "origin": "n",
            "incarnation": "x",
            "sent_tai": 0.0,
            "sequence": 1,
            "instruments": {},
            "capacity": 1,
        },
        ended=listed,
    )
    assert len(encode(hello)) < 0.8 * NODE_LIMIT
