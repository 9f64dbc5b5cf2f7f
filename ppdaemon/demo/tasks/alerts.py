# SPDX-License-Identifier: BSD-3-Clause
"""Alert packets: the newest LSST schema, one Avro file for each visit and detector.

Writing the file cannot be repeated: an existing file is never replaced.
"""

import io
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lsst.pex.config as pexConfig  # noqa: N812
import lsst.pipe.base as pipeBase  # noqa: N812
import lsst.pipe.base.connectionTypes as cT
import numpy as np
import pandas
from astropy.io import fits
from astropy.wcs import WCS
from lsst.alert.packet import Schema
from lsst.images import MaskedImage

from ppdaemon.demo.tasks.planes import projection_of
from ppdaemon.demo.tasks.visitdetector import VisitDetectorTask
from ppdaemon.durable import sync

__all__ = ("AlertsConfig", "AlertsConnections", "AlertsTask", "alert_file_name", "cutout", "publish_alerts")

_ALL = ("instrument", "visit", "detector")


def alert_file_name(visit: int, detector: int) -> str:
    """Return the name of a visit-detector's file in the folder of the alert files."""
    return f"alerts_{visit}_{detector:03d}.avro"


def cutout(pixels: np.ndarray, x: float, y: float, half_width_px: int, wcs: WCS | None = None) -> bytes:
    """Cut a square out of an image and encode it as FITS.

    Parameters
    ----------
    pixels : `numpy.ndarray`, (rows, columns)
        Image in nJy.
    x, y : `float`
        Center of the square, 0-based pixels.
    half_width_px : `int`
        The square has 2 * half_width_px + 1 rows and columns.
    wcs : `astropy.wcs.WCS`, optional
        Projection of the image, 0-based; without it the header has none.

    Returns
    -------
    encoded : `bytes`
        A FITS file with one float32 image; NaN beyond the edge of the image.
    """
    size = 2 * half_width_px + 1
    left, low = round(x) - half_width_px, round(y) - half_width_px
    square = np.full((size, size), np.nan, dtype=np.float32)
    rows = slice(max(low, 0), min(low + size, pixels.shape[0]))
    columns = slice(max(left, 0), min(left + size, pixels.shape[1]))
    square[rows.start - low : rows.stop - low, columns.start - left : columns.stop - left] = pixels[
        rows, columns
    ]
    header = fits.Header({"BUNIT": "nJy"})
    if wcs is not None:
        header["RADESYS"] = "ICRS"
        for axis, offset in ((1, left), (2, low)):
            header[f"CTYPE{axis}"] = str(wcs.wcs.ctype[axis - 1])
            header[f"CUNIT{axis}"] = "deg"
            header[f"CRVAL{axis}"] = float(wcs.wcs.crval[axis - 1])
            header[f"CRPIX{axis}"] = float(wcs.wcs.crpix[axis - 1]) - offset
            for other in (1, 2):
                header[f"CD{axis}_{other}"] = float(wcs.pixel_scale_matrix[axis - 1, other - 1])
    stream = io.BytesIO()
    fits.PrimaryHDU(square, header).writeto(stream)
    return stream.getvalue()


def publish_alerts(path: Path, schema: Schema, packets: Iterable[Mapping[str, Any]]) -> None:
    """Write packets to a new file that appears complete and is synced to disk.

    Parameters
    ----------
    path : `pathlib.Path`
        The file; its folder is made if it does not exist.
    schema : `lsst.alert.packet.Schema`
        Schema of the packets.
    packets : `~collections.abc.Iterable`
        The packets; the file is written for an empty list, too.

    Raises
    ------
    FileExistsError
        Raised if the file exists: another program may have read it already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as stream:
            schema.store_alerts(stream, packets)
        sync(partial)
        # A link, unlike a rename, fails if the file exists.
        os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


class AlertsConnections(pipeBase.PipelineTaskConnections, dimensions=_ALL):
    """Stored sources and images as inputs, a summary of the alert file as output."""

    dia_source_apdb = cT.Input(
        name="dia_source_apdb", doc="DiaSources as stored.", storageClass="DataFrame", dimensions=_ALL
    )
    dia_object_apdb = cT.Input(
        name="dia_object_apdb", doc="Their DiaObjects.", storageClass="DataFrame", dimensions=_ALL
    )
    preloaded_dia_sources = cT.Input(
        name="preloaded_dia_sources",
        doc="Earlier DiaSources.",
        storageClass="DataFrame",
        dimensions=("instrument", "group", "detector"),
    )
    science = cT.Input(
        name="preliminary_visit_image",
        doc="Calibrated image, nJy.",
        storageClass="MaskedImageV2",
        dimensions=_ALL,
    )
    template_warp = cT.Input(
        name="template_warp",
        doc="Template on its pixels, nJy.",
        storageClass="MaskedImageV2",
        dimensions=_ALL,
    )
    difference_image = cT.Input(
        name="difference_image", doc="Difference, nJy.", storageClass="MaskedImageV2", dimensions=_ALL
    )
    alerts = cT.Output(
        name="alerts",
        doc="The file, the number of alerts and their IDs.",
        storageClass="StructuredDataDict",
        dimensions=_ALL,
    )


class AlertsConfig(pipeBase.PipelineTaskConfig, pipelineConnections=AlertsConnections):
    """Configuration of `AlertsTask`."""

    alert_dir = pexConfig.Field[str](doc="Folder of the alert files.", default="")
    cutout_half_width_px = pexConfig.RangeField(
        dtype=int, doc="Pixels of a cutout on each side of its center.", default=20, min=1
    )


class AlertsTask(VisitDetectorTask):
    """Make an alert packet of each DiaSource and write them to one file."""

    ConfigClass = AlertsConfig
    _DefaultName = "alerts"
    config: AlertsConfig

    def run(
        self,
        dia_source_apdb: pandas.DataFrame,
        dia_object_apdb: pandas.DataFrame,
        preloaded_dia_sources: pandas.DataFrame,
        science: MaskedImage,
        template_warp: MaskedImage,
        difference_image: MaskedImage,
        *,
        visit: int,
        detector: int,
    ) -> pipeBase.Struct:
        """Write the alerts of one visit and detector.

        Parameters
        ----------
        dia_source_apdb, dia_object_apdb : `pandas.DataFrame`
            Sources and their objects, row by row.
        preloaded_dia_sources : `pandas.DataFrame`
            Earlier sources of those objects.
        science, template_warp, difference_image : `lsst.images.MaskedImage`
            Images for the cutouts, nJy, on one pixel grid.
        visit, detector : `int`
            IDs that make the file name.

        Returns
        -------
        result : `lsst.pipe.base.Struct`
            ``alerts``: `dict` with ``count``, ``dia_source_ids``, ``file`` (its
            name) and ``schema``.

        Raises
        ------
        FileExistsError
            Raised if the alerts were written before.
        ValueError
            Raised if ``alert_dir`` is not configured.
        """
        if not self.config.alert_dir:
            raise ValueError(f"{self.getName()}:alert_dir is not set: name the folder of the alert files")
        schema = Schema.from_uri()
        images = {"Science": science, "Template": template_warp, "Difference": difference_image}
        sources = _records(dia_source_apdb, _fields(schema, "diaSource"))
        objects = _records(dia_object_apdb, _fields(schema, "diaObject"))
        past = _records(preloaded_dia_sources, _fields(schema, "diaSource"))
        packets = [
            {
                "diaSourceId": source["diaSourceId"],
                "observation_reason": science.metadata.get("observation_reason"),
                "target_name": science.metadata.get("target_name"),
                "diaSource": source,
                "diaObject": dia_object,
                "prvDiaSources": [each for each in past if each["diaObjectId"] == source["diaObjectId"]]
                or None,
            }
            | self._cutouts(images, source["x"], source["y"])
            for source, dia_object in zip(sources, objects, strict=True)
        ]
        path = Path(self.config.alert_dir, alert_file_name(visit, detector))
        publish_alerts(path, schema, packets)
        self.metadata["alert_count"] = len(packets)
        summary = {
            "count": len(packets),
            "dia_source_ids": [packet["diaSourceId"] for packet in packets],
            "file": path.name,
            "schema": schema.definition["name"],
        }
        return pipeBase.Struct(alerts=summary)

    def _cutouts(self, images: Mapping[str, MaskedImage], x: float, y: float) -> dict[str, bytes]:
        half_width = self.config.cutout_half_width_px
        return {
            f"cutout{name}": cutout(image.image.array, x, y, half_width, projection_of(image))
            for name, image in images.items()
        }


def _fields(schema: Schema, record: str) -> frozenset[str]:
    """Return the field names of a record that is nested in the alert schema."""
    (field_type,) = (each["type"] for each in schema.definition["fields"] if each["name"] == record)
    # A nullable field has a list of types, with "null" as one of them.
    types = field_type if isinstance(field_type, list) else [field_type]
    nested = next(each for each in types if isinstance(each, dict))
    return frozenset(field["name"] for field in nested["fields"])


def _records(table: pandas.DataFrame, fields: frozenset[str]) -> list[dict[str, Any]]:
    """Convert rows to dicts of plain values, without nulls and columns unknown to the schema."""
    known = table[[name for name in table.columns if name in fields]]
    return [
        {name: value for name, value in record.items() if not _is_null(value)}
        for record in known.to_dict("records")
    ]


def _is_null(value: Any) -> bool:
    return value is None or value is pandas.NA or (isinstance(value, float) and math.isnan(value))
