# SPDX-License-Identifier: BSD-3-Clause
"""Writing beside the running tasks what is exported: a thread that begins when no alert can be late by it."""

import logging
import threading
from collections import deque
from pathlib import Path

from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.direct.datasets import MemoryDataset
from ppdaemon.middleware.direct.files import DatasetWriter

__all__ = ("BackgroundWriter",)

_LOG = logging.getLogger(__name__)


class BackgroundWriter:
    """Writes datasets into files in a folder on the RAM disk."""

    def __init__(self, writer: DatasetWriter, folder: Path):
        self._writer = writer
        self._folder = folder
        self._waiting: deque[MemoryDataset] = deque()
        self._news = threading.Condition()
        """Guards all below, which both threads change."""
        self._allowed = False
        self._over = False
        self._thread: threading.Thread | None = None

    def offer(self, dataset: MemoryDataset) -> None:
        """Write a dataset some time, and set its file; nobody may change its content from now on."""
        with self._news:
            self._waiting.append(dataset)
            self._start()
            self._news.notify()

    def allow(self) -> None:
        """Begin: no task is left for which each millisecond counts."""
        with self._news:
            self._allowed = True
            self._start()

    def finish(self) -> None:
        """End; what is being written is finished, what waits is left to who needs it."""
        with self._news:
            self._over = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start(self) -> None:
        if self._allowed and self._waiting and self._thread is None and not self._over:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._thread = threading.Thread(target=self._work, name="background-writer", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (dataset := self._next()) is not None:
            content = dataset.content
            if dataset.file is not None:  # written meanwhile: only then the content is forgotten
                continue
            try:
                dataset.file = self._writer.write(content, dataset.ref, self._folder, dataset.provenance)
            except Exception as error:  # formatters are foreign code; whoever spools will get it again
                _LOG.info("%s is not written yet: %s", dataset.ref, describe(error))
            del content  # or it would be kept for as long as this thread waits

    def _next(self) -> MemoryDataset | None:
        with self._news:
            while not self._waiting and not self._over:
                self._news.wait()
            return None if self._over else self._waiting.popleft()
