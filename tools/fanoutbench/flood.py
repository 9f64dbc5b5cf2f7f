# SPDX-License-Identifier: BSD-3-Clause
"""Many visits as fast as they go: what is lost or doubled, and what the relay needs."""

import time
from collections.abc import Sequence

from benching.cli import progress
from benching.orders import Orders
from benching.results import Scalar

from fanoutbench.observatory import Observatory
from ppdaemon.states import Outcome

OPEN = 4
"""Visits that are open at once: the workers are never idle."""
WARM_UP = 300
"""After so many visits the caches of the relay are full: SQLite's of 2 MB needs some 200 visits. What
grows afterwards grows for ever."""


def measure_flood(observatory: Observatory, visits: int, name: str = "flood") -> dict[str, Scalar]:
    """Send visits whose workers do nothing; their groups begin with a name."""
    orders, early_mb = observatory.prepared, None
    began, relay_s, nodes_s = time.monotonic(), observatory.relay_cpu_s(), observatory.nodes_cpu_s()
    for number in range(visits):
        observatory.announce(f"{name}{number}", "skip")
        oldest = f"{name}{number - OPEN + 1}"
        if number >= OPEN - 1:
            observatory.wait_for_all(orders, oldest)
        if number + 1 == WARM_UP:
            early_mb = observatory.relay_mb()
        if number % 50 == 0:
            progress(f"{name}: visit {number} of {visits}, relay {observatory.relay_mb():.1f} MB")
    for number in range(max(0, visits - OPEN), visits):
        observatory.wait_for_all(orders, f"{name}{number}")
    observatory.wait_until_idle()
    took_s = time.monotonic() - began
    relay_s, nodes_s = observatory.relay_cpu_s() - relay_s, observatory.nodes_cpu_s() - nodes_s
    late_mb = observatory.relay_mb()
    return {
        "visits": visits,
        "visits_per_s": visits / took_s,
        **_count(observatory, [f"{name}{number}" for number in range(visits)], orders),
        "relay_warm_pss_mb": early_mb,
        "relay_late_pss_mb": late_mb,
        "relay_growth_percent": early_mb and 100 * (late_mb - early_mb) / early_mb,
        "relay_cpu_percent": 100 * relay_s / took_s,
        "relay_ms_per_visit": 1e3 * relay_s / visits,
        "nodes_ms_per_visit": 1e3 * nodes_s / visits,
    }


def _count(observatory: Observatory, groups: Sequence[str], orders: Orders) -> dict[str, Scalar]:
    """Compare the relay's outcomes with what the workers recorded."""
    succeeded = doubled = 0
    for group in groups:
        observatory.wait(lambda group=group: all(observatory.client.outcomes(group).values()))  # type: ignore[misc]
        outcomes = observatory.client.outcomes(group)
        succeeded += sum(outcome == Outcome.SUCCEEDED for outcome in outcomes.values())
        doubled += sum(count > 1 for count in orders.count(group).values())
    return {"lost": len(groups) * observatory.detectors - succeeded, "doubled": doubled}
