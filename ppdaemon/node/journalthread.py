# SPDX-License-Identifier: BSD-3-Clause
"""The journal's thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ppdaemon.node.journal import Journal

__all__ = ("JournalThread",)


class JournalThread:
    """The journal in a thread of its own, so that no disk stalls the pump.

    Parameters
    ----------
    journal : `Journal`
        Used from here on by the thread alone.
    """

    def __init__(self, journal: Journal):
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, "journal")

    async def call[T](self, work: Callable[[Journal], T]) -> T:
        """Do something with the journal, after all that was asked before.

        Parameters
        ----------
        work : `~collections.abc.Callable`
            Gets the `Journal`.

        Returns
        -------
        result : `object`
            What `work` returned.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._journal)

    def close(self) -> None:
        """Finish what is queued, close the file and end the thread."""
        self._thread.submit(self._journal.close).result()
        self._thread.shutdown()
