# SPDX-License-Identifier: BSD-3-Clause
"""The span of a visit-detector in the relay, the root of its trace. Pure."""

from ppdaemon.relay.orders import Ended
from ppdaemon.traces import Span, TraceKey, problem_of, root_of, trace_number

__all__ = ("span_of",)


def span_of(ended: Ended, relay: str, ended_tai: float) -> Span:
    """Return the span from the announcement of a visit-detector to its outcome in the ledger."""
    trace = trace_number(TraceKey(ended.instrument, ended.group, ended.detector))
    names = ("instrument", "group", "detector", "survey", "node", "attempt", "reason")
    return Span(
        "visit-detector",
        "pprelay",
        relay,
        trace,
        root_of(trace),
        None,
        ended.received_tai,
        max(ended.received_tai, ended_tai),
        {f"ppdaemon.{name}": getattr(ended, name) for name in names}
        | {"ppdaemon.outcome": str(ended.outcome)},
        problem_of(ended.outcome, ended.reason),
    )
