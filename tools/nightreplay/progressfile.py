# SPDX-License-Identifier: BSD-3-Clause
"""What a replay has done so far, in a file: one that was interrupted continues where it was.

Groups are named by the times of the first run. What was sent and not noted is sent again under the same
name, which the relay answers as a duplicate: nothing is lost or doubled.
"""

import fcntl
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from nightreplay.nights import ReplayedVisit
from ppdaemon.demo.telescope import PlannedEvent, TelescopeEvent, TelescopeStep
from ppdaemon.errors import BadMessage, Refused

_NOTED = frozenset({TelescopeStep.ANNOUNCE, TelescopeStep.CANCEL, TelescopeStep.WRITE})


class ProgressFile:
    """A line for each event that was done, after one with the times of the first run.

    Raises `~ppdaemon.errors.BadMessage` if the file is that of another night, or of something else, and
    `~ppdaemon.errors.Refused` if another replay is using it: both would send the same events.
    """

    def __init__(self, path: Path, source: str, visits: int, begin_tai_s: float, seq_num: int):
        self.begin_tai_s, self.seq_num = begin_tai_s, seq_num
        """Of the first run; groups and exposures are named by them."""
        self._done: Counter[str] = Counter()
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise Refused(f"{path}: another replay is using it; wait until it ends, or end it") from None
        try:
            self._continue(source, visits)
        except (ValueError, TypeError, KeyError):  # also a first line that a full disk has cut
            self._file.close()
            raise BadMessage(f"{path} is no file of a replay: delete it, or name another one") from None
        except BadMessage:
            self._file.close()
            raise

    def _continue(self, source: str, visits: int) -> None:
        """Read what was done, or begin the file."""
        self._file.seek(0)
        text = self._file.read()
        if not text:
            head = {
                "source": source,
                "visits": visits,
                "begin_tai": self.begin_tai_s,
                "seq_num": self.seq_num,
            }
            self._write(json.dumps(head))
            return
        first, *lines = text.splitlines()
        head = json.loads(first)
        of_source, of_visits = head["source"], head["visits"]
        if (of_source, of_visits) != (source, visits):
            raise BadMessage(f"{self._file.name} is of another replay: {of_source}, {of_visits} visits")
        self.begin_tai_s, self.seq_num = head["begin_tai"], head["seq_num"]
        # The last line may be cut by a full disk or a crash.
        self._done.update(line for line in lines if line.endswith("."))
        if not text.endswith("\n"):
            self._write("")

    def rest(self, visits: Sequence[ReplayedVisit], events: Iterable[PlannedEvent]) -> list[ReplayedVisit]:
        """Return the visits with an event that was not done."""
        planned = Counter(_line(event) for event in events if event.step in _NOTED)
        names = {line.partition(" ")[2] for line in planned - self._done}
        return [visit for visit in visits if f"{visit.group}." in names]

    def note(self, event: TelescopeEvent) -> None:
        """Remember an event that was done."""
        if event.step in _NOTED:
            self._write(_line(event))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: str) -> None:
        self._file.write(f"{line}\n")
        self._file.flush()


def _line(event: PlannedEvent | TelescopeEvent) -> str:
    return f"{event.step} {event.visit.group}."
