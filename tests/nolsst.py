# SPDX-License-Identifier: BSD-3-Clause
"""Refuses imports of LSST code in a run for which it must not be needed."""


class NoLsst:
    """A finder that fails where LSST code is imported; the first of ``sys.meta_path``."""

    def find_spec(self, name: str, *_: object) -> None:
        """Find nothing, and fail for LSST code."""
        if name.partition(".")[0] == "lsst":
            raise AssertionError(f"{name} is imported in a run --without-lsst")
