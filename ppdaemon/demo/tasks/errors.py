# SPDX-License-Identifier: BSD-3-Clause
"""Failures of the demo's tasks that a repetition would not mend."""

from lsst.pipe.base import AlgorithmError

__all__ = ("AlreadyAssociatedError", "BadRawError", "TooFewStarsError", "UncalibratedPointingError")


class _MeasuredError(AlgorithmError):
    """An error that carries the numbers which led to it."""

    def __init__(self, message: str, **numbers: str | int | float | bool):
        super().__init__(message)
        self._numbers = numbers

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
        """The numbers that led to the failure (`dict`)."""
        return dict(self._numbers)


class BadRawError(_MeasuredError):
    """A raw image that cannot be from this camera, or has no signal at all."""


class UncalibratedPointingError(_MeasuredError):
    """The header does not say where the telescope pointed."""


class TooFewStarsError(_MeasuredError):
    """Too few stars for a PSF, an astrometric solution or a kernel."""


class AlreadyAssociatedError(_MeasuredError):
    """The alert database has sources of this visit and detector already."""
