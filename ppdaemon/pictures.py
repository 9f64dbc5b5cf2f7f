# SPDX-License-Identifier: BSD-3-Clause
"""Pictures in PNG files. Needs matplotlib, which no daemon imports."""

from pathlib import Path
from typing import Any

from ppdaemon.errors import PPDaemonError
from ppdaemon.states import ExitCode

__all__ = ("CannotDraw", "new_figure", "save_png")


class CannotDraw(PPDaemonError):
    """The picture cannot be made or written: the message has the reason."""

    exit_code = ExitCode.CANNOT_CREATE


def new_figure(width_in: float, height_in: float) -> Any:
    """Return an empty figure that needs no display, 130 pixels per inch.

    Raises `CannotDraw` if matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CannotDraw(f"pictures need matplotlib: pip install 'ppdaemon[demo]' ({error})") from None
    figure = Figure(figsize=(width_in, height_in), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Any, path: Path) -> None:
    """Write a figure to a PNG file, replacing an old one.

    Raises `CannotDraw` if the file cannot be written.
    """
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise CannotDraw(f"{path}: {error.strerror}") from None
