# SPDX-License-Identifier: BSD-3-Clause
"""The template repo, made once per configuration by a process for it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic

from ppdaemon.errors import PPDaemonError
from ppdaemon.messages import ForkWorker, Ready
from ppdaemon.node.processes.lifecycle import Lifecycle, State
from ppdaemon.node.processes.supervised import ForkedProcess

__all__ = ("TemplateFailed", "TemplateProcess")

SLOT = -2
LIMIT_S = 120.0


class TemplateFailed(PPDaemonError):
    """There is no template repo: no worker could start."""


class TemplateProcess(ForkedProcess[Ready]):
    """One process that makes the template and ends."""

    def __init__(self, repo: Path, log: Path, ask_fork: Callable[[ForkWorker], bool]):
        lifecycle = Lifecycle(boot_s=LIMIT_S, answer_s=LIMIT_S, first_pause_s=0.0, longest_pause_s=0.0)
        super().__init__("template", SLOT, repo, log, pydantic.TypeAdapter(Ready), lifecycle, ask_fork)
        self._problem_of_end: asyncio.Future[str] = self._loop.create_future()

    async def run(self) -> None:
        """Have the template made.

        Raises
        ------
        TemplateFailed
            Raised with the end of its log if it was not made in time.
        """
        self.start()
        try:
            problem = await asyncio.wait_for(self._problem_of_end, LIMIT_S)
        except TimeoutError:
            problem = f"not made within {LIMIT_S:g} s"
        finally:
            self.close()
        if problem:
            raise TemplateFailed(f"the template repo was not made: {problem}\n{self._last_lines()}")

    def _received(self, message: Ready, descriptors: list[int]) -> None:
        """Its only message: the template is made. Workers copy it after its end, when it is closed, too."""
        self.retire()

    def _serve(self) -> None:
        """It gets no orders."""

    def _lost(self, manner: str, owed: list[Any]) -> None:
        if not self._problem_of_end.done():
            made = self.lifecycle.state is State.CLOSED  # after it was retired
            self._problem_of_end.set_result("" if made else f"its process {manner}; see {self._log}")
        self.close()
