# SPDX-License-Identifier: BSD-3-Clause
"""The spans of an attempt, made of its row in the journal when it has ended. Pure."""

import itertools
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from ppdaemon.node.visits.model import JournalEntry
from ppdaemon.states import Stage
from ppdaemon.traces import Span, TraceKey, Value, problem_of, root_of, span_number, trace_number

__all__ = ("spans_of",)

AFTER: dict[Stage | None, str] = {
    Stage.ACCEPTED: "queue",
    Stage.ASSIGNED: "prepare",
    Stage.PREPARED: "wait",
    Stage.ARRIVED: "ingest",
    Stage.INGESTED: "build",
    Stage.FIRST_TASK: "run",
    Stage.PROCESSED: "spool",
}
"""What follows each stage until the next one."""


NONE: Mapping[str, Value] = MappingProxyType({})
OF_NODE = frozenset({"attempt", "queue"})
"""The others are of its worker."""


def spans_of(entry: JournalEntry, node: str, *, has_relay: bool) -> Iterator[Span]:
    """Yield the spans of an attempt that has ended on a node: the attempt, its wait for a worker, the worker
    with each part of its work, and the tasks.
    """
    key, times = entry.key, _times(entry)
    trace = trace_number(TraceKey(*key[:3]))
    problem = problem_of(entry.outcome, entry.reason)
    ended = times[-1][1]

    def number(name: str) -> int:
        return span_number(trace, node, key.attempt, name)

    def span(
        name: str,
        parent: int | None,
        begin: float,
        end: float,
        problem: str | None = None,
        attributes: Mapping[str, Value] = NONE,
        task: str = "",
    ) -> Span:
        is_worker = bool(task) or name not in OF_NODE
        service, instance = ("ppdaemon-worker", f"{node}/{entry.slot}") if is_worker else ("ppdaemon", node)
        return Span(
            name, service, instance, trace, number(task or name), parent, begin, end, attributes, problem
        )

    yield span(
        "attempt",
        root_of(trace) if has_relay else None,
        times[0][1],
        ended,
        problem,
        {
            **{f"ppdaemon.{name}": value for name, value in key._asdict().items()},
            "ppdaemon.outcome": str(entry.outcome),
            "ppdaemon.reason": entry.reason,
            "ppdaemon.survey": entry.visit.survey,
            "ppdaemon.exposures": ",".join(map(str, entry.exposures)),
        },
    )
    if assigned := [tai for stage, tai in times if stage is Stage.ASSIGNED]:
        values = {"pipeline": entry.pipeline, "engine": entry.engine, **entry.figures}
        measured = {
            f"ppdaemon.{name}": each for name, each in values.items() if isinstance(each, str | int | float)
        }
        yield span("worker", number("attempt"), assigned[0], ended, problem, measured)
    for (stage, begin), (following, end) in itertools.pairwise(times):
        name = AFTER.get(stage, "")
        if name and end > begin:
            parent = number("attempt" if name in OF_NODE else "worker")
            yield span(name, parent, begin, end, problem if following is None else None)
    for index, (label, begin, end, reason) in enumerate(entry.figures.get("tasks", ())):
        yield span(label, number("run"), begin, end, reason, task=f"task {index}")


def _times(entry: JournalEntry) -> list[tuple[Stage | None, float]]:
    """Return the stages that were reached in the order of processing, and the end; no time is before the one
    of the stage before it: a raw may arrive before the worker is prepared, and a clock may be set.
    """
    latest, times = 0.0, []
    # Without a worker nothing follows the arrival of a raw.
    stages = Stage if Stage.ASSIGNED in entry.stages else (Stage.ACCEPTED,)
    order: list[tuple[Stage | None, float | None]] = [(stage, entry.stages.get(stage)) for stage in stages]
    for stage, tai in (*order, (None, entry.ended_tai)):
        if tai is not None:
            latest = max(latest, tai)
            times.append((stage, latest))
    return times
