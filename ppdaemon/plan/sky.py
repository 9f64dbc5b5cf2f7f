# SPDX-License-Identifier: BSD-3-Clause
"""Draws a plan on the sky: footprints, and the regions of the datasets to preload."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppdaemon.pictures import CannotDraw, new_figure, save_png
from ppdaemon.plan.models import DatasetPlan, Degrees, FootprintPlan, Plan

__all__ = ("sky_png",)

type _Flat = tuple[float, float]
"""Degrees east and north of the center of the picture."""

_SIDE_IN = 8.0
_MOST_LABELS = 60
"""Labels of one dataset type; more would overlap."""
_LABEL_STEP = 0.04
_SHARED = frozenset({"instrument", "skymap", "band", "detector", "physical_filter"})
"""Dimensions that are the same for all patches or shards of a picture."""
_COLORS = ("#4c9f70", "#f2a541", "#9b7ede", "#c06c84", "#5b7065")


def sky_png(plan: Plan, path: Path) -> None:
    """Write a PNG file with the footprints of the detectors and the regions of their datasets.

    Raises `~ppdaemon.pictures.CannotDraw` if no detector has a footprint, matplotlib is not
    installed, or the file cannot be written.
    """
    if all(each.footprint is None for each in plan.detectors):
        raise CannotDraw(f"{path}: the visit has no footprint on the sky, there is nothing to draw")
    figure = new_figure(_SIDE_IN, _SIDE_IN)
    axes = figure.subplots()
    project = _projection(_center(plan))
    frame = _Frame.around(plan, project)
    frame.apply(axes)
    picture = _Picture(axes, project, frame)
    for color, (name, regions) in zip(itertools.cycle(_COLORS), _regions(plan).items(), strict=False):
        picture.regions(name, regions, color)
    for each in plan.detectors:
        if each.footprint is not None:
            picture.footprint(each.detector, each.footprint)
    if plan.boresight is not None:
        picture.boresight(plan.boresight)
    ra, dec = _center(plan)
    axes.set_xlabel(f"degrees east of RA {ra:.4f}")
    axes.set_ylabel(f"degrees north of Dec {dec:+.4f}")
    axes.set_title(f"{plan.visit.instrument}  {plan.visit.group}", fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    picture.legend()
    save_png(figure, path)


def _center(plan: Plan) -> Degrees:
    """Return the center of the picture: that of the only detector, else the boresight."""
    centers = [each.footprint.center for each in plan.detectors if each.footprint is not None]
    return centers[0] if len(centers) == 1 or plan.boresight is None else plan.boresight


def _projection(center: Degrees) -> Callable[[Degrees], _Flat]:
    """Return the zenithal equidistant projection: distances from the center are true."""
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---ARC", "DEC--ARC"
    wcs.wcs.crval = center
    wcs.wcs.lonpole = 180.0  # north is up at the celestial poles, too

    def project(point: Degrees) -> _Flat:
        ((east, north),) = wcs.wcs_world2pix([point], 1)
        return float(east), float(north)

    return project


def _regions(plan: Plan) -> dict[str, dict[str, tuple[Degrees, ...]]]:
    """Return the corners of the spatial datasets by type and label."""
    found: dict[str, dict[str, tuple[Degrees, ...]]] = {}
    for detector in plan.detectors:
        for each in detector.datasets:
            if each.region is not None:
                names, label = _labels(each)
                found.setdefault(f"{each.dataset_type}: {names}", {})[label] = each.region
    return found


def _labels(dataset: DatasetPlan) -> tuple[str, str]:
    """Return the names and the values of the dimensions that identify a patch or a shard."""
    identifying = {name: value for name, value in dataset.data_id.items() if name not in _SHARED}
    return ", ".join(identifying), ", ".join(map(str, identifying.values()))


@dataclass(frozen=True, slots=True)
class _Frame:
    """The visible part of the sky: a square with east to the left."""

    x: float
    y: float
    half: float

    @classmethod
    def around(cls, plan: Plan, project: Callable[[Degrees], _Flat]) -> "_Frame":
        """Return the frame of all footprints and the boresight."""
        shown = [
            project(corner) for each in plan.detectors if each.footprint for corner in each.footprint.padded
        ]
        if plan.boresight is not None:
            shown.append(project(plan.boresight))
        (low_x, low_y), (high_x, high_y) = (
            (least(x for x, _ in shown), least(y for _, y in shown)) for least in (min, max)
        )
        half = 0.65 * max(high_x - low_x, high_y - low_y)
        return cls((low_x + high_x) / 2, (low_y + high_y) / 2, half)

    def apply(self, axes: Any) -> None:
        """Set the limits of the axes."""
        axes.set_xlim(self.x + self.half, self.x - self.half)
        axes.set_ylim(self.y - self.half, self.y + self.half)
        axes.set_aspect("equal")

    def clip(self, corners: Sequence[_Flat]) -> list[_Flat]:
        """Return the visible part of a convex polygon; empty if it is outside the frame."""
        from matplotlib.path import Path as Outline
        from matplotlib.transforms import Bbox

        low, high = (self.x - self.half, self.y - self.half), (self.x + self.half, self.y + self.half)
        outline = Outline([*corners, corners[0]], closed=True)
        vertices: Any = outline.clip_to_bbox(Bbox([low, high])).vertices
        return [(float(x), float(y)) for x, y in vertices[:-1]]


class _Picture:
    """Draws into axes in degrees."""

    def __init__(self, axes: Any, project: Callable[[Degrees], _Flat], frame: _Frame):
        self._axes = axes
        self._project = project
        self._frame = frame
        self._legend: dict[str, Any] = {}
        self._types = 0

    def regions(self, name: str, regions: Mapping[str, Sequence[Degrees]], color: str) -> None:
        """Draw patches or shards, each labeled within its visible part."""
        # Labels of different types and the cross of the boresight must not overlap.
        lift = _LABEL_STEP * self._frame.half * (-1) ** self._types * (1 + self._types // 2)
        self._types += 1
        for label, corners in regions.items():
            self._polygon(corners, f"{name} ({len(regions)})", edgecolor=color, facecolor=f"{color}1a")
            visible = self._frame.clip([self._project(corner) for corner in corners])
            if visible and len(regions) <= _MOST_LABELS:
                x, y = _mean(visible)
                self._label((x, y + lift), label, color=color, fontsize=7)

    def footprint(self, detector: int, found: FootprintPlan) -> None:
        """Draw a footprint, with its number near its last corner."""
        self._polygon(found.padded, "padded footprint", edgecolor="#e4572e", fill=False, linestyle="--")
        self._polygon(found.corners, "footprint", edgecolor="#1f3b57", facecolor="#8fb8de55", linewidth=1.5)
        center, corner = self._project(found.center), self._project(found.corners[-1])
        position = center[0] + 0.8 * (corner[0] - center[0]), center[1] + 0.8 * (corner[1] - center[1])
        self._label(position, str(detector), color="#1f3b57", fontsize=9, weight="bold")

    def boresight(self, point: Degrees) -> None:
        """Mark the boresight with a cross."""
        x, y = self._project(point)
        (mark,) = self._axes.plot([x], [y], marker="+", markersize=14, color="black", linestyle="none")
        self._legend["boresight"] = mark

    def legend(self) -> None:
        """Draw the legend."""
        self._axes.legend(
            self._legend.values(), self._legend.keys(), loc="upper right", fontsize=8, framealpha=0.9
        )

    def _polygon(self, corners: Sequence[Degrees], name: str, **style: Any) -> None:
        from matplotlib.patches import Polygon

        drawn = Polygon([self._project(corner) for corner in corners], closed=True, **style)
        self._legend.setdefault(name, self._axes.add_patch(drawn))

    def _label(self, position: _Flat, text: str, **style: Any) -> None:
        back = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1.0}
        self._axes.text(*position, text, ha="center", va="center", zorder=5, clip_on=True, bbox=back, **style)


def _mean(points: Sequence[_Flat]) -> _Flat:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
