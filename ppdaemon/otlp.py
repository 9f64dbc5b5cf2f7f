# SPDX-License-Identifier: BSD-3-Clause
"""Sends spans to a collector of OpenTelemetry: OTLP over HTTP.

Imported where traces are configured only, in the thread that sends them: 0.15 s, 13 MB, no thread.
"""

import functools
import logging
import re
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from ppdaemon import __version__
from ppdaemon.clock import TAI_MINUS_UTC_S
from ppdaemon.traces import Span, Value

__all__ = ("Collector",)

TIMEOUT_S = 10.0
"""With repetitions; what is not sent by then is dropped."""
MAX_PROBLEM = 300
"""Characters of the library's reason."""


_SYSTEM_ERROR = re.compile(r"\[Errno -?\d+\] ([^\"')]+)")


class _LastProblem(logging.Handler):
    """Keeps the first of what the library logs about a failure, instead of several lines in the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        system = _SYSTEM_ERROR.search(text)  # within the names of three libraries and the address again
        self.text = self.text or (system[1] if system else text)[:MAX_PROBLEM]


class Collector:
    """A connection to the collector at an address; for one thread."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_S)
        self._problem = _LastProblem()
        library = logging.getLogger("opentelemetry")
        library.handlers[:], library.propagate = [self._problem], False

    def send(self, spans: Sequence[Span]) -> str:
        """Send spans; return why they could not be sent, or a blank. Takes up to `TIMEOUT_S`."""
        self._problem.text = ""
        if self._exporter.export([_converted(span) for span in spans]) is SpanExportResult.SUCCESS:
            return ""
        return self._problem.text or "no reason is known"

    def close(self) -> None:
        """Send nothing more; may be called by another thread to end a repetition."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


_SCOPE = InstrumentationScope("ppdaemon", __version__)


@functools.lru_cache(maxsize=4096)
def _resource(service: str, instance: str) -> Resource:
    return Resource(
        {"service.name": service, "service.instance.id": instance, "service.version": __version__}
    )


def _context(trace: int, number: int) -> SpanContext:
    return SpanContext(trace, number, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _unix_ns(tai: float) -> int:
    return round((tai - TAI_MINUS_UTC_S) * 1e9)


def _valid(value: Value) -> Value:
    """Return a value that can be encoded: one that cannot would cost all spans of its request."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    return value if isinstance(value, float) or abs(value) < 2**63 else str(value)


def _converted(span: Span) -> ReadableSpan:
    problem = span.problem and str(_valid(span.problem))
    return ReadableSpan(
        str(_valid(span.name)),
        context=_context(span.trace, span.number),
        parent=None if span.parent is None else _context(span.trace, span.parent),
        resource=_resource(span.service, span.instance),
        attributes={name: _valid(value) for name, value in span.attributes.items()},
        status=Status(StatusCode.UNSET) if problem is None else Status(StatusCode.ERROR, problem),
        start_time=_unix_ns(span.begin_tai),
        end_time=_unix_ns(span.end_tai),
        instrumentation_scope=_SCOPE,
    )
