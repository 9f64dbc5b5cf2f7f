# SPDX-License-Identifier: BSD-3-Clause
"""DemoCam as a Butler instrument."""

from typing import Any

from lsst.daf.butler.registry import Registry
from lsst.pipe.base import Instrument

from ppdaemon.demo.geometry import (
    CAMERA_NAME,
    DETECTOR_COUNT,
    FILTER_BANDS,
    RAFT,
    detector_name,
    detector_slot,
)
from ppdaemon.demo.rawformatter import DemoCamRawFormatter
from ppdaemon.demo.translator import DemoCamTranslator

__all__ = ("DemoCam", "VISIT_SYSTEM_ONE_TO_ONE")

VISIT_SYSTEM_ONE_TO_ONE = 0
"""The only visit system: each exposure is a visit."""


class DemoCam(Instrument):
    """The simulated camera: nine detectors, three filters, one exposure per visit."""

    policyName = CAMERA_NAME  # noqa: N815 -- the base class's name
    raw_definition = ("raw", ("instrument", "exposure", "detector"), "ImageV2")
    translatorClass = DemoCamTranslator  # noqa: N815 -- obs_base's name for it

    @classmethod
    def getName(cls) -> str:  # noqa: N802 -- the base class's name
        """Return ``DemoCam``."""
        return CAMERA_NAME

    def getRawFormatter(self, dataId: Any) -> type[DemoCamRawFormatter]:  # noqa: N802, N803
        """Return the formatter of raw files, the same for all data IDs."""
        return DemoCamRawFormatter

    def register(self, registry: Registry, *, update: bool = False) -> None:
        """Insert the instrument, its detectors, filters and visit system."""

        def sync(element: str, **record: Any) -> None:
            registry.syncDimensionData(element, record, update=update)

        with registry.transaction():
            sync(
                "instrument",
                name=CAMERA_NAME,
                # IDs of exposures are day_obs * 100000 + sequence number.
                visit_max=10**13,
                exposure_max=10**13,
                detector_max=DETECTOR_COUNT,
                class_name=f"{type(self).__module__}.{type(self).__qualname__}",
                visit_system=VISIT_SYSTEM_ONE_TO_ONE,
            )
            for detector in range(DETECTOR_COUNT):
                sync(
                    "detector",
                    instrument=CAMERA_NAME,
                    id=detector,
                    full_name=detector_name(detector),
                    name_in_raft=detector_slot(detector),
                    raft=RAFT,
                    purpose="SCIENCE",
                )
            for physical_filter, band in FILTER_BANDS.items():
                sync("physical_filter", instrument=CAMERA_NAME, name=physical_filter, band=band)
            sync("visit_system", instrument=CAMERA_NAME, id=VISIT_SYSTEM_ONE_TO_ONE, name="one-to-one")
