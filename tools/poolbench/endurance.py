# SPDX-License-Identifier: BSD-3-Clause
"""Whether anything in the supervisor grows with the visits it has served."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benching.figures import Scalar
from benching.places import Places

from poolbench.crowd import CAMERA
from poolbench.figures import per_thousand
from poolbench.node import BenchFailed, Node, Usage, node_config, running
from ppdaemon.camera import load_camera
from ppdaemon.states import Outcome

__all__ = ("measure_endurance",)

BATCH = 100
"""Detectors of one visit."""
SEATS = 8
MOST_OPEN = 2 * BATCH
REMEMBER_S = 5.0
"""Short, so that what the arrivals remember is full long before the end."""
WARM_UP = 0.25
"""This share of the visits fills caches that do not grow any more."""
SHARE = 0.1
"""The first and last visits that are compared."""
OBS_DAY = 20261122


@dataclass(frozen=True, slots=True)
class _Sample:
    done: int
    at: float
    usage: Usage


def measure_endurance(
    places: Places, visits: int, progress: Callable[[str], None], *, raws: bool
) -> dict[str, Scalar]:
    """Send visit-detectors through a daemon whose workers do nothing.

    Parameters
    ----------
    places : `~benching.places.Places`
        Empty folders.
    visits : `int`
        How many visit-detectors.
    progress : `~collections.abc.Callable`
        Gets one line now and then.
    raws : `bool`
        Whether each of them waits for a raw, which lands.

    Returns
    -------
    figures : `dict`
        Slopes per 1000 visit-detectors, times of the first and last tenth.

    Raises
    ------
    BenchFailed
        Raised if a visit-detector did not succeed.
    """
    workers = {"max": SEATS, "work": "poolbench.idle_work"}
    parts = {"arrivals": {"roots": [str(places.scratch / "raw")], "remember_s": REMEMBER_S}}
    config = node_config(places, {CAMERA: f"0-{BATCH - 1}"}, workers, **parts)
    with running(config, places) as node:
        samples = _serve(node, visits // BATCH, progress, raws=raws)
        if node.relay.outcomes != {Outcome.SUCCEEDED}:
            raise BenchFailed(f"outcomes {sorted(node.relay.outcomes)}")
    return _judge(samples)


def _serve(node: Node, batches: int, progress: Callable[[str], None], *, raws: bool) -> list[_Sample]:
    """Keep two visits in flight; take a sample whenever another one is sent."""
    relay, samples = node.relay, [_sample(node)]
    names = _raw_names() if raws else []
    for number in range(batches):
        group = f"g{number:06d}"
        relay.reserve(CAMERA, group, range(BATCH), "raw" if raws else "prepare")
        if raws:
            _land(node.raws, group, number + 1, names)
        most = MOST_OPEN - BATCH if number + 1 < batches else 0
        node.wait(lambda most=most: relay.open <= most, pause_s=0.02)  # type: ignore[misc]
        samples.append(_sample(node))
        if (number + 1) % 20 == 0:
            rss_mb = samples[-1].usage.rss_kb / 1e3
            progress(f"slope: {relay.ended} of {batches * BATCH}, {rss_mb:.2f} MB")
    return samples


def _sample(node: Node) -> _Sample:
    return _Sample(node.relay.ended, time.monotonic(), node.usage())


def _judge(samples: list[_Sample]) -> dict[str, Scalar]:
    steady = samples[round(len(samples) * WARM_UP) :]
    counts = [sample.done for sample in steady]
    share = max(1, round(len(samples) * SHARE))
    first, last = samples[: share + 1], samples[-share - 1 :]
    return {
        "visit_detectors": samples[-1].done,
        "slope_kb_per_1000": per_thousand(counts, [sample.usage.rss_kb for sample in steady]),
        "descriptors_slope": per_thousand(counts, [sample.usage.descriptors for sample in steady]),
        "ms_per_visit_first": _ms_per_visit(first, lambda sample: sample.at),
        "ms_per_visit_last": _ms_per_visit(last, lambda sample: sample.at),
        "cpu_ms_per_visit_first": _ms_per_visit(first, lambda sample: sample.usage.cpu_s),
        "cpu_ms_per_visit_last": _ms_per_visit(last, lambda sample: sample.usage.cpu_s),
        "slope_rss_first_mb": samples[0].usage.rss_kb / 1e3,
        "slope_rss_last_mb": samples[-1].usage.rss_kb / 1e3,
    }


def _ms_per_visit(samples: list[_Sample], clock: Callable[[_Sample], float]) -> float:
    first, last = samples[0], samples[-1]
    return 1e3 * (clock(last) - clock(first)) / max(1, last.done - first.done)


def _raw_names() -> list[str]:
    """Return raft and sensor of each detector, as raw names have them."""
    camera = load_camera(CAMERA)
    return [camera.detectors[number].name for number in range(BATCH)]


def _land(root: Path, group: str, number: int, names: list[str]) -> None:
    """Let the raws of one exposure land, each renamed into place."""
    obsid = f"MC_O_{OBS_DAY}_{number:06d}"
    folder = root / CAMERA / str(OBS_DAY) / obsid
    folder.mkdir(parents=True)
    sidecar = {"OBSID": obsid, "GROUPID": group, "CURINDEX": 1, "MAXINDEX": 1, "DAYOBS": str(OBS_DAY)}
    sidecar |= {"SEQNUM": number, "CONTRLLR": "O", "CAMCODE": "MC"}
    files = ((".json", json.dumps(sidecar).encode()), (".fits", _small_fits()))
    for name in names:
        for suffix, data in files:
            part = folder / f".{obsid}_{name}{suffix}.part"
            part.write_bytes(data)
            part.rename(folder / f"{obsid}_{name}{suffix}")


def _small_fits() -> bytes:
    """Return a whole FITS file of one byte."""
    cards = (
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    1",
    )
    header = "".join(card.ljust(80) for card in (*cards, "NAXIS1  =                    1", "END"))
    return header.ljust(2880).encode() + bytes(2880)
