# SPDX-License-Identifier: BSD-3-Clause
"""The spans of a visit-detector's trace, as relay and nodes make them. Pure.

The numbers of a trace and of its spans are hashes of the names of what they describe: relay and
nodes agree on them, and on which traces are sampled, without a word in their messages.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ppdaemon.states import BAD_OUTCOMES, Outcome

__all__ = ("Span", "TraceKey", "Value", "is_sampled", "problem_of", "root_of", "span_number", "trace_number")

type Value = str | int | float


class TraceKey(NamedTuple):
    """What has one trace."""

    instrument: str
    group: str
    detector: int


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of the work for a visit-detector."""

    name: str
    """One of few: Jaeger and others group by it."""
    service: str
    """The program."""
    instance: str
    """Which of them, such as the name of a node."""
    trace: int
    number: int
    parent: int | None
    begin_tai: float
    end_tai: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    problem: str | None = None
    """Why it failed; `None` if it did not."""


def _number(size: int, *names: object) -> int:
    text = "\0".join(map(str, names)).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=size).digest())


def trace_number(key: TraceKey) -> int:
    """Return the number of a visit-detector's trace, 128 bits."""
    return _number(16, *key)


def span_number(trace: int, *names: object) -> int:
    """Return the number of a span with these names in a trace, 64 bits."""
    return _number(8, trace, *names)


def root_of(trace: int) -> int:
    """Return the number of the span of the relay, the parent of all others."""
    return span_number(trace, "relay")


def is_sampled(trace: int, ratio: float) -> bool:
    """Return whether a trace belongs to this share of all."""
    return trace % 2**64 < ratio * 2**64


def problem_of(outcome: Outcome | None, reason: str) -> str | None:
    """Return why a visit-detector with this outcome has failed, `None` if it has not."""
    return f"{outcome}: {reason}" if outcome in BAD_OUTCOMES else None
