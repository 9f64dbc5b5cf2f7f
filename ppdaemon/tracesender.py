# SPDX-License-Identifier: BSD-3-Clause
"""Sends traces from a thread of its own; what cannot be sent is dropped and counted.

The event loop only puts a function into a queue; the thread makes the spans, and waits for the
collector. It exists where traces are configured only, in relay and supervisor: workers have none,
so that no fork carries it along.
"""

import importlib
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from ppdaemon.commonconfig import TracesConfig
from ppdaemon.traces import Span, TraceKey, is_sampled, trace_number

__all__ = ("TraceSender",)

_LOG = logging.getLogger(__name__)

MAX_WAITING = 5000
"""Visit-detectors whose spans wait, some 10 MB; a node of a large camera has some 60 at work."""
MAX_BATCH = 200
"""Visit-detectors in one request, some 1 MB."""
COLLECT_S = 0.5
"""Others join a request for this long: all detectors of a visit end within seconds."""
CLOSE_S = 1.0
"""How long a stop waits for the last request; and again after it was aborted."""

type MakeSpans = Callable[[], Iterable[Span]]


class TraceSender:
    """Sends the spans of visit-detectors, where the configuration has a collector."""

    def __init__(self, config: TracesConfig):
        self.sent = self.dropped = 0
        """Visit-detectors since the start."""
        self.problem = ""
        """Why spans are dropped; blank if they are not."""
        self._config = config
        self._waiting: queue.Queue[MakeSpans | None] = queue.Queue(MAX_WAITING)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._collector: Any = None

    @property
    def counters(self) -> Mapping[str, int]:
        """Counters for the status; none without a collector."""
        used = self._config.endpoint is not None or self.sent or self.dropped
        return {"traces_sent": self.sent, "traces_dropped": self.dropped} if used else {}

    def reconfigure(self, config: TracesConfig) -> None:
        """Use another configuration from now on."""
        self._config = config
        if config.endpoint is None:
            self.problem = ""

    def put(self, key: TraceKey, make: MakeSpans) -> None:
        """Send what a function returns, if this visit-detector is sampled; return at once."""
        if self._config.endpoint is None or not is_sampled(trace_number(key), self._config.ratio):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(make)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Send what waits, unless it takes long, and end the thread; blocks for seconds."""
        self._closing.set()
        with suppress(queue.Full):
            self._waiting.put_nowait(None)  # a thread that waits takes it
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            if self._thread.is_alive() and self._collector is not None:
                self._collector.close()
                self._thread.join(CLOSE_S)

    # --- in the thread ---------------------------------------------------

    def _run(self) -> None:
        while True:
            if batch := self._take():
                self._send(batch)
            elif self._closing.is_set():
                return

    def _take(self) -> list[MakeSpans]:
        found: list[MakeSpans | None] = []
        with suppress(queue.Empty):
            found.append(self._waiting.get(block=not self._closing.is_set()))
            self._closing.wait(COLLECT_S)
            while len(found) < MAX_BATCH:
                found.append(self._waiting.get_nowait())
        return [make for make in found if make is not None]

    def _send(self, batch: list[MakeSpans]) -> None:
        endpoint = self._config.endpoint
        if endpoint is None:  # removed by a reload meanwhile
            return
        made = [spans for make in batch if (spans := self._made(make))]
        try:
            problem = self._connected(endpoint).send([span for spans in made for span in spans])
        except Exception as error:  # costs these traces, not the thread
            _LOG.exception("internal error: traces are dropped; please report this")
            problem = f"internal error: {error}"
        before = self.problem
        self.problem = f"traces cannot be sent to {endpoint} and are dropped: {problem}" if problem else ""
        if problem and not before:
            _LOG.warning("traces cannot be sent to %s, they are dropped: %s", endpoint, problem)
        elif before and not problem:
            _LOG.info("traces are sent to %s again", endpoint)
        # Counted last: who sees the numbers, in another thread, sees the problem, too.
        if problem:
            self.dropped += len(made)
        else:
            self.sent += len(made)

    def _made(self, make: MakeSpans) -> list[Span]:
        try:
            return list(make())
        except Exception:  # a worker has sent the times of its tasks, which are foreign code
            self.dropped += 1
            _LOG.exception("internal error: a trace is dropped; please report this")
            return []

    def _connected(self, endpoint: str) -> Any:
        """Return the collector of an address; its libraries are imported when it is needed first."""
        if self._collector is None or self._collector.endpoint != endpoint:
            if self._collector is not None:
                self._collector.close()
            self._collector = importlib.import_module("ppdaemon.otlp").Collector(endpoint)
        return self._collector
