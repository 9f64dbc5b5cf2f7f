# SPDX-License-Identifier: BSD-3-Clause
"""Errors of the demo's tasks that a retry would not fix."""

from lsst.pipe.base import AlgorithmError

__all__ = ("AlreadyAssociatedError", "BadRawError", "TooFewStarsError", "UncalibratedPointingError")


class _MeasuredError(AlgorithmError):
    """An error with the numbers that caused it."""

    def __init__(self, message: str, **numbers: str | int | float | bool):
        super().__init__(message)
        self._numbers = numbers

    @property
    def metadata(self) -> dict[str, str | int | float | bool]:
        """The numbers that caused the error."""
        return dict(self._numbers)


class BadRawError(_MeasuredError):
    """A raw image that is not from this camera, or has no signal."""


class UncalibratedPointingError(_MeasuredError):
    """The header has no pointing."""


class TooFewStarsError(_MeasuredError):
    """Too few stars for a PSF, an astrometric solution or a kernel."""


class AlreadyAssociatedError(_MeasuredError):
    """The alert database has sources of this visit and detector already."""
