# SPDX-License-Identifier: BSD-3-Clause
"""How many nodes the cadence needs: of which visits, and by which times."""

from ppdaemon.relay.demand import Demand, InstrumentDemand
from ppdaemon.sizing import FEWEST, LONGEST_GAP_S


def observed(
    demand: Demand, visits: int, cadence_s: float, busy_s: float, instrument: str = "LSSTCam"
) -> float:
    for number in range(visits):
        demand.add_visit(instrument, number * cadence_s, 189)
        demand.add_success(instrument, busy_s)
    return (visits - 1) * cadence_s


def test_slots_are_detectors_by_the_visits_under_way_at_once() -> None:
    demand = Demand()
    now = observed(demand, FEWEST, 40.0, 330.0)
    assert demand.of_instruments(now) == {"LSSTCam": InstrumentDemand(40.0, 189, 330.0)}
    assert demand.of_instruments(now)["LSSTCam"].slots == 189 * 9  # ceil(330 / 40)


def test_nothing_is_needed_of_few_visits_and_after_the_last_one_of_a_night() -> None:
    demand = Demand()
    now = observed(demand, FEWEST - 1, 40.0, 30.0)
    assert demand.of_instruments(now) == {}
    demand.add_success("LSSTCam", 30.0)
    assert demand.of_instruments(now + LONGEST_GAP_S).keys() == {"LSSTCam"}
    assert demand.of_instruments(now + LONGEST_GAP_S + 1.0) == {}
    only = Demand()
    only.add_visit("LSSTCam", 0.0, 189)
    assert only.of_instruments(1.0) == {}


def test_a_break_is_no_cadence_and_one_slow_detector_of_twenty_does_not_count() -> None:
    demand = Demand()
    for start in (0.0, 40.0, 80.0, 5000.0, 5030.0, 5060.0, 5090.0):
        demand.add_visit("LSSTCam", start, 9)
    for _ in range(95):
        demand.add_success("LSSTCam", 30.0)
    for _ in range(5):
        demand.add_success("LSSTCam", 900.0)
    (found,) = demand.of_instruments(5100.0).values()
    assert (found.cadence_s, found.visit_s, found.slots) == (30.0, 30.0, 9)
