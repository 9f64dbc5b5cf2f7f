# SPDX-License-Identifier: BSD-3-Clause
"""Last looks for the raws of visits whose time is over: one for many detectors.

The deadlines of all detectors of a visit pass at the same moment, and their
raws lie in the same folders.
"""

from collections.abc import Callable, Collection, Coroutine
from typing import Any

from ppdaemon.node.journal import Entry
from ppdaemon.visit import NextVisit

__all__ = ("LastLooks", "Look")

type Look = Callable[[NextVisit, Collection[int], float], Coroutine[Any, Any, None]]
"""Looks at the expected names of some detectors of a visit that was announced
at a time, TAI seconds since 1970; what it finds is told as if it came now."""


class LastLooks:
    """Has one look at a time taken for each visit.

    Parameters
    ----------
    look : `Look`
        Takes a look; ends by itself, soon.
    ended : `~collections.abc.Callable`
        Gets each `~ppdaemon.node.journal.Entry` that was looked for.
    run : `~collections.abc.Callable`
        Runs a coroutine to its end beside the caller.
    """

    def __init__(
        self,
        look: Look,
        ended: Callable[[Entry], None],
        run: Callable[[Coroutine[Any, Any, None]], None],
    ):
        self._look = look
        self._ended = ended
        self._run = run
        self._wanted: dict[tuple[str, str], list[Entry]] = {}

    def want(self, entry: Entry) -> None:
        """Have a look taken for a visit-detector, with others of its visit.

        Parameters
        ----------
        entry : `~ppdaemon.node.journal.Entry`
            Whose raws are missed.
        """
        visit = entry.key[:2]
        if visit in self._wanted:
            self._wanted[visit].append(entry)
        else:
            self._wanted[visit] = [entry]
            # It begins in the next turn of the loop: in this one, the other
            # detectors' deadlines pass.
            self._run(self._look_for(visit))

    async def _look_for(self, visit: tuple[str, str]) -> None:
        try:
            while entries := self._wanted[visit]:
                self._wanted[visit] = []
                detectors = {entry.key.detector for entry in entries}
                await self._look(entries[0].visit, detectors, min(entry.received_tai for entry in entries))
                for entry in entries:
                    self._ended(entry)
        finally:  # else no look would be taken for this visit any more
            del self._wanted[visit]
