# SPDX-License-Identifier: BSD-3-Clause
"""Which node gets which detector: fair, stable, and never a node that cannot."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.relay.routing import NodeOffer, RouteTable, spares_suffice

DETECTORS = frozenset(range(205))


def offer(node, capacity=60, detectors=DETECTORS, instrument="LSSTCam", spare=False):
    return NodeOffer(node, {instrument: frozenset(detectors)}, capacity, spare)


OFFERS = st.lists(
    st.builds(
        offer,
        st.sampled_from([f"node{k}" for k in range(8)]),
        st.integers(0, 100),
        st.frozensets(st.integers(0, 20)),
    ),
    unique_by=lambda found: found.node,
)


def owners(table, detectors=DETECTORS):
    return {detector: table.choose("LSSTCam", detector) for detector in detectors}


def test_without_nodes_no_detector_is_assigned():
    assert RouteTable().choose("LSSTCam", 0) is None


def test_a_detector_goes_only_to_a_node_that_offers_it():
    table = RouteTable([offer("a", detectors={1, 2}), offer("b", detectors={2, 3})])
    assert table.choose("LSSTCam", 1) == "a"
    assert table.choose("LSSTCam", 3) == "b"
    assert table.choose("LSSTCam", 4) is None
    assert table.choose("LATISS", 1) is None


def test_a_node_without_capacity_gets_nothing():
    assert RouteTable([offer("a", capacity=0)]).choose("LSSTCam", 0) is None


def test_a_barred_node_is_passed_over():
    table = RouteTable([offer("a"), offer("b")])
    first, second = (found.node for found in table.ranking("LSSTCam", 7))
    assert table.choose("LSSTCam", 7) == first
    assert table.choose("LSSTCam", 7, {first}) == second
    assert table.choose("LSSTCam", 7, {first, second}) is None


def test_detectors_are_shared_in_proportion_to_capacity():
    many = frozenset(range(20_000))
    table = RouteTable([offer("a", 60, many), offer("b", 30, many), offer("c", 10, many)])
    shares = Counter(owners(table, many).values())
    for node, share in (("a", 0.6), ("b", 0.3), ("c", 0.1)):
        # five standard deviations of the binomial distribution
        assert abs(shares[node] / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5


def test_the_choice_is_the_same_in_every_process():
    table = RouteTable([offer("a"), offer("b"), offer("c")])
    assert [table.choose("LSSTCam", detector) for detector in range(8)] == list("babbaacc")


@given(OFFERS)
def test_the_choice_does_not_depend_on_the_order_of_nodes(offers):
    assert owners(RouteTable(offers), range(21)) == owners(RouteTable(offers[::-1]), range(21))


@given(OFFERS)
def test_every_detector_that_can_be_served_goes_to_a_node_that_serves_it(offers):
    for detector, node in owners(RouteTable(offers), range(21)).items():
        able = {found.node for found in offers if detector in found.detectors["LSSTCam"] and found.capacity}
        assert node in able if able else node is None


@given(OFFERS, st.integers(0, 7))
def test_when_a_node_goes_only_its_own_detectors_move(offers, gone):
    before = owners(RouteTable(offers), range(21))
    after = owners(RouteTable([found for found in offers if found.node != f"node{gone}"]), range(21))
    assert all(after[d] == node for d, node in before.items() if node != f"node{gone}")


def test_nodes_of_the_table_come_first_and_spares_last():
    offers = [offer(node) for node in "abcd"] + [offer("s", spare=True)]
    table = RouteTable(offers, {"LSSTCam": {7: ("d", "gone", "b")}})
    names = [found.node for found in table.ranking("LSSTCam", 7)]
    assert (names[:2], names[-1]) == (["d", "b"], "s")
    rest = [found.node for found in RouteTable(offers).ranking("LSSTCam", 7) if found.node in "ac"]
    assert names[2:4] == rest


def test_a_spare_in_the_table_is_still_a_spare():
    table = RouteTable([offer("a"), offer("s", spare=True)], {"LSSTCam": {7: ("s",)}})
    assert [found.node for found in table.ranking("LSSTCam", 7)] == ["a", "s"]


def test_detectors_without_any_node_are_listed():
    table = RouteTable([offer("a", detectors={1, 2}), offer("b", 0)])
    assert table.unserved("LSSTCam", (1, 2, 3, 4)) == (3, 4)


def brute_force(spares, free, detectors):
    """Whether some way to place the detectors exists: all ways are tried."""
    if not detectors:
        return True
    first, *others = detectors
    return any(
        brute_force(spares, free | {node.node: free[node.node] - 1}, others)
        for node in spares
        if free[node.node] and node.serves("LSSTCam", first)
    )


@given(
    st.lists(st.frozensets(st.integers(0, 4)), max_size=3),
    st.lists(st.integers(0, 3), min_size=3, max_size=3),
    st.integers(0, 5),
)
def test_spares_suffice_if_there_is_any_way(served, places, number):
    spares = [offer(f"s{k}", detectors=detectors) for k, detectors in enumerate(served)]
    free = {f"s{k}": room for k, room in enumerate(places)}
    found = spares_suffice(spares, free, "LSSTCam", range(number))
    assert found is brute_force(spares, free, list(range(number)))
