# SPDX-License-Identifier: BSD-3-Clause
"""Draw cutouts of the brightest alerts."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppdaemon.demo.geometry import PIXEL_SCALE_ARCSEC
from ppdaemon.demo.score import read_alerts
from ppdaemon.demo.tasks.calibrate import NJY_ZERO_POINT_MAG

__all__ = ("brightest_alerts", "plot_alerts")

_ROWS = ("Science", "Template", "Difference")
_INK, _PAPER, _MUTED = "#1b1f24", "#ffffff", "#6b7280"
_SCALE_BAR_ARCSEC = 2.0
# Width and height of one cutout in the picture.
_PANEL_IN = 1.35


def brightest_alerts(paths: Iterable[Path | str], count: int) -> list[dict[str, Any]]:
    """Return the packets of highest significance that have all three cutouts.

    Each object appears only once; the most significant packet is first.
    """
    packets = [packet for path in paths for packet in read_alerts(path)]
    complete = [packet for packet in packets if all(packet[f"cutout{row}"] for row in _ROWS)]
    chosen: list[dict[str, Any]] = []
    for packet in sorted(complete, key=lambda each: -(each["diaSource"]["snr"] or 0.0)):
        if not any(_same_position(packet, other) for other in chosen):
            chosen.append(packet)
        if len(chosen) == count:
            break
    return chosen


def _same_position(one: dict[str, Any], other: dict[str, Any]) -> bool:
    a, b = one["diaSource"], other["diaSource"]
    east = (a["ra"] - b["ra"]) * np.cos(np.radians(a["dec"]))
    return float(np.hypot(east, a["dec"] - b["dec"])) * 3600.0 < 1.0


def plot_alerts(paths: Iterable[Path | str], output: Path | str, *, count: int = 8) -> int:
    """Draw science, template and difference of the brightest alerts; return their number.

    Science and template of an alert share one gray scale; the difference is
    blue where the sky became fainter and red where it became brighter. Raises
    `ValueError` if there is no alert: no file is written then.
    """
    alerts = brightest_alerts(paths, count)
    if not alerts:
        raise ValueError("no alert with cutouts in the given files: there is nothing to draw")
    columns = len(alerts)
    figure = Figure(figsize=(0.45 + _PANEL_IN * columns, 1.0 + _PANEL_IN * len(_ROWS)), facecolor=_PAPER)
    axes = figure.subplots(len(_ROWS), columns, squeeze=False)
    for column, packet in enumerate(alerts):
        _draw_alert([axes[row, column] for row in range(len(_ROWS))], packet)
    for row, name in enumerate(_ROWS):
        axes[row, 0].set_ylabel(name.lower(), fontsize=9, color=_INK)
    _add_scale_bar(axes[-1, 0])
    figure.suptitle("The most significant alerts", x=0.01, ha="left", fontsize=11, weight="bold", color=_INK)
    figure.subplots_adjust(
        left=0.35 / figure.get_figwidth(),
        right=0.995,
        bottom=0.02,
        top=1.0 - 0.85 / figure.get_figheight(),
        wspace=0.05,
        hspace=0.05,
    )
    figure.savefig(output, dpi=160)
    return columns


def _draw_alert(axes: list[Axes], packet: dict[str, Any]) -> None:
    images = {row: _pixels(packet[f"cutout{row}"]) for row in _ROWS}
    for axis, (row, pixels) in zip(axes, images.items(), strict=True):
        noise = _noise(images["Science"])
        if row == "Difference":
            top = max(float(np.nanmax(np.abs(pixels))), 5.0 * noise)
            low, color_map = -top, "RdBu_r"
        else:
            top = max(float(np.nanmax(images["Science"])), float(np.nanmax(images["Template"])))
            low, color_map = -2.0 * noise, "gray"
        axis.imshow(
            _stretch(pixels, noise),
            origin="lower",
            cmap=color_map,
            vmin=float(_stretch(low, noise)),
            vmax=float(_stretch(top, noise)),
        )
        axis.set_xticks([])
        axis.set_yticks([])
        for side in axis.spines.values():
            side.set_color("#c9ced6")
    source = packet["diaSource"]
    axes[0].set_title(_caption(source), fontsize=7, color=_MUTED, linespacing=1.35)


def _caption(source: dict[str, Any]) -> str:
    """Return band, brightness of the change, significance and position."""
    change = source["psfFlux"]
    magnitude = NJY_ZERO_POINT_MAG - 2.5 * np.log10(abs(change))
    verb = "brighter" if change > 0 else "fainter"
    return (
        f"{source['band']} = {magnitude:.1f} {verb}\nS/N {source['snr']:.0f}, detector {source['detector']}\n"
        f"{source['ra']:.4f} {source['dec']:+.4f}"
    )


def _pixels(encoded: bytes) -> np.ndarray:
    with fits.open(io.BytesIO(encoded)) as hdus:
        return np.asarray(hdus[0].data, dtype=float)


def _noise(pixels: np.ndarray) -> float:
    """Return the robust standard deviation, never 0, so that it can divide."""
    return max(1.4826 * float(np.nanmedian(np.abs(pixels - np.nanmedian(pixels)))), 1e-6)


def _stretch(pixels: np.ndarray | float, noise: float) -> np.ndarray:
    return np.asarray(np.arcsinh(pixels / (3.0 * noise)))


def _add_scale_bar(axis: Axes) -> None:
    length = _SCALE_BAR_ARCSEC / PIXEL_SCALE_ARCSEC
    axis.plot([3, 3 + length], [3, 3], color=_INK, linewidth=1.5, solid_capstyle="butt")
    label = f"{_SCALE_BAR_ARCSEC:.0f}″"
    axis.text(3 + length / 2, 4.2, label, ha="center", va="bottom", fontsize=7, color=_INK)
