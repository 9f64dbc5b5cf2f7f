# SPDX-License-Identifier: BSD-3-Clause
"""Pictures in files. Needs matplotlib, which no daemon does."""

from pathlib import Path
from typing import Any

from ppdaemon.errors import PPDaemonError
from ppdaemon.states import ExitCode

__all__ = ("CannotDraw", "new_figure", "save_png")


class CannotDraw(PPDaemonError):
    """The picture cannot be made or written: the text says why."""

    exit_code = ExitCode.CANNOT_CREATE


def new_figure(width_in: float, height_in: float) -> Any:
    """Make an empty picture.

    Parameters
    ----------
    width_in, height_in : `float`
        Size in inches, of 130 pixels each.

    Returns
    -------
    figure : `matplotlib.figure.Figure`
        To draw in; needs no display.

    Raises
    ------
    CannotDraw
        Raised if matplotlib is missing.
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
    """Write a picture.

    Parameters
    ----------
    figure : `matplotlib.figure.Figure`
        From `new_figure`.
    path : `pathlib.Path`
        The PNG file; overwritten.

    Raises
    ------
    CannotDraw
        Raised if the file cannot be written.
    """
    try:
        figure.savefig(path, format="png")
    except OSError as error:
        raise CannotDraw(f"{path}: {error.strerror}") from None
