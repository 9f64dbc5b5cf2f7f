# SPDX-License-Identifier: BSD-3-Clause
"""The orders that scripted workers have recorded, and how long after their causes."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benching.results import Scalar, percentile


class Orders:
    """Lines that scripted workers append to a file of each node: group, detector, ..., monotonic time.

    Only what was appended is read: while orders are awaited, this runs beside what is measured. The files
    need not exist yet.
    """

    def __init__(self, *files: Path):
        self._offsets = dict.fromkeys(files, 0)
        self._rows: dict[str, list[tuple[int, float]]] = defaultdict(list)

    def of(self, group: str) -> list[tuple[int, float]]:
        """Return detector and time of those of a group."""
        for path, offset in self._offsets.items():
            if path.exists():
                with path.open("rb") as file:
                    file.seek(offset)
                    lines = file.read()
                lines = lines[: lines.rfind(b"\n") + 1]  # the last line may be half written
                self._offsets[path] += len(lines)
                for name, detector, *_, at in map(str.split, lines.decode().splitlines()):
                    self._rows[name].append((int(detector), float(at)))
        return self._rows.get(group, [])

    def count(self, group: str) -> Counter[int]:
        """Return the number of orders of a group by detector."""
        return Counter(detector for detector, _ in self.of(group))


@dataclass(slots=True)
class Samples:
    """Files or messages of one source, each for one detector. Pure."""

    sent: int = 0
    lost: int = 0
    """Those without an order to a worker."""
    doubled: int = 0
    """Repeated orders."""
    latencies_ms: list[float] = field(default_factory=list)
    """From the complete file, or the message, to the order."""

    def add(self, sent: Mapping[int, float], ordered: Iterable[tuple[int, float]]) -> None:
        """Add times by detector, and the orders that followed; all are monotonic seconds."""
        times: dict[int, list[float]] = {}
        for detector, at in ordered:
            times.setdefault(detector, []).append(at)
        self.sent += len(sent)
        self.lost += len(sent.keys() - times.keys())
        self.doubled += sum(len(each) - 1 for each in times.values())
        self.latencies_ms += [
            (min(times[detector]) - at) * 1e3 for detector, at in sent.items() if detector in times
        ]

    def results(self, what: str = "") -> dict[str, Scalar]:
        """Return percentiles, with a prefix; `None` if there is no order."""
        prefix, found = f"{what}_" if what else "", self.latencies_ms
        return {
            f"{prefix}p50_ms": percentile(found, 50) if found else None,
            f"{prefix}p99_ms": percentile(found, 99) if found else None,
            f"{prefix}worst_ms": max(found, default=None),
        }
