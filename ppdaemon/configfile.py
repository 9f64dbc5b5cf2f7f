# SPDX-License-Identifier: BSD-3-Clause
"""A node's configuration with the lines of its keys, and warnings about valid settings: what is
probably a mistake, and what does not fit this host.
"""

import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ppdaemon.config import NodeConfig, read_node
from ppdaemon.mounts import is_ramdisk
from ppdaemon.selection import never_reached
from ppdaemon.thishost import filesystem_size, host_memory, nearest_existing
from ppdaemon.yamlfile import KeyPath, did_you_mean, located

__all__ = ("ConfigFile", "exceeds_unit")

UNIT = "ppdaemon.service"
"""The daemon's unit, whose time limit of a stop is compared with ``workers.times``."""
SYSTEMCTL_S = 2.0
"""A service manager that does not answer in this time is not asked."""
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|min|h|d|w)")
_SPAN_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A configuration file that has been read and checked."""

    path: Path
    config: NodeConfig
    lines: Mapping[KeyPath, int]

    @classmethod
    def read(cls, path: Path, environment: Mapping[str, str]) -> "ConfigFile":
        """Read a file; raise `~ppdaemon.errors.ConfigError` with all errors."""
        return cls(path, *read_node(path, environment))

    def located(self, problems: Iterable[tuple[KeyPath, str]]) -> list[str]:
        """Return a line for each problem, with file, line and key."""
        return located(self.path, self.lines, problems)

    def remarks(self) -> list[str]:
        """Return a line for each warning: rules that no visit reaches, conditions that are probably not
        the intended ones, and settings that do not fit this host.
        """
        return self.located([*_unintended(self.config), *_unfit_for_host(self.config)])


def _unintended(config: NodeConfig) -> Iterator[tuple[KeyPath, str]]:
    lists = {"preprocessing": config.pipelines.preprocessing, "main": config.pipelines.main}
    for name, rules in lists.items():
        for late, early in never_reached(rules):
            yield ("pipelines", name, late), f"never used: pipelines.{name}.{early} matches all its visits"
        for number, rule in enumerate(rules):
            if rule.ra is not None and rule.ra.surprising:
                yield ("pipelines", name, number, "ra"), f"{rule.ra} is used as {rule.ra.described}"
            for other in sorted(set(rule.instrument or ()) - set(config.node.instruments)):
                hint = did_you_mean(other, config.node.instruments)
                text = f"matches no visit of {other}: node.instruments does not have it{hint}"
                yield ("pipelines", name, number, "instrument"), text


def _unfit_for_host(config: NodeConfig) -> Iterator[tuple[KeyPath, str]]:
    """Find settings that this host does not allow for."""
    ramdisk, state_dir = nearest_existing(config.node.ramdisk), nearest_existing(config.node.state_dir)
    memory = config.workers.memory
    if not is_ramdisk(ramdisk):
        yield (
            ("node", "ramdisk"),
            f"{config.node.ramdisk} is not on a tmpfs: workers are slow; mount one there",
        )
    elif (size := filesystem_size(ramdisk)) and size < memory.ramdisk:
        yield (
            ("workers", "memory", "ramdisk"),
            f"{memory.ramdisk / 1e9:g} GB are more than the whole RAM disk has ({size / 1e9:.3g} GB)",
        )
    if is_ramdisk(state_dir):
        yield (
            ("node", "state_dir"),
            f"{config.node.state_dir} is on a RAM disk: accepted visits are lost when the host restarts",
        )
    if (spill := config.export.spill) is not None and is_ramdisk(nearest_existing(spill)):
        yield (
            ("export", "spill"),
            f"{spill} is on a RAM disk: outputs that wait are lost when the host restarts",
        )
    total = host_memory()
    for key in ("hard", "budget"):
        if (limit := getattr(memory, key)) is not None and limit > total:
            yield (
                ("workers", "memory", key),
                f"{limit / 1e9:g} GB are more than the memory of this host ({total / 1e9:.3g} GB)",
            )


def exceeds_unit(config: NodeConfig) -> Iterator[tuple[KeyPath, str]]:
    """Find a stop that takes longer than the service manager allows.

    Runs a program, for at most two seconds: the supervisor, which kills unknown children, must not
    call it.
    """
    times = config.workers.times
    needed = times.stop_s + times.grace_s + times.kill_s
    if (allowed := _unit_stop_s(UNIT)) is not None and needed > allowed:
        yield (
            ("workers", "times", "stop_s"),
            f"a stop takes up to {needed:g} s (stop_s + grace_s + kill_s), but systemd kills the daemon "
            f"after {allowed:g} s: raise TimeoutStopSec of {UNIT}, or lower stop_s",
        )


def _unit_stop_s(unit: str) -> float | None:
    """Return ``TimeoutStopSec`` of a systemd unit; `None` if there is no such unit or no limit."""
    command = ["systemctl", "show", "--value", "--property=LoadState,TimeoutStopUSec", unit]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMCTL_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no systemd, or it does not answer: a start must not fail because of a warning
    lines = set(done.stdout.split("\n"))
    return None if "loaded" not in lines else next(filter(None, map(_parse_span, lines - {"loaded"})), None)


def _parse_span(text: str) -> float | None:
    """Return the seconds of a time span as systemd.time(7) has it, such as ``1min 30s``."""
    parts = [_SPAN.fullmatch(part) for part in text.split()]
    seconds = [float(part[1]) * _SPAN_S[part[2]] for part in parts if part is not None]
    return sum(seconds) if parts and len(seconds) == len(parts) else None
