# SPDX-License-Identifier: BSD-3-Clause
"""Messages between the supervisor and the publisher, and the files from workers to the publisher."""

import uuid
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.publish.config import Publication
from ppdaemon.reports import DestinationReport
from ppdaemon.wire import BY_TYPE, Model

__all__ = (
    "BUNDLES",
    "PUBLISHER_FACTS",
    "PUBLISHER_ORDERS",
    "Bundle",
    "Publish",
    "PublishReport",
    "PublisherFact",
    "PublisherOrder",
    "PublisherReady",
    "PublisherSettings",
    "Telemetry",
)


class Bundle(Model):
    """A bundle of metrics, as a dataset."""

    id: uuid.UUID
    run: str
    dataset_type: str
    data_id: dict[str, str | int]
    utc: float
    """When it was written, UTC seconds since 1970."""
    content: dict[str, Any]
    """As ``MetricMeasurementBundle`` is stored: lists of measurements by action."""


BUNDLES = pydantic.TypeAdapter[tuple[Bundle, ...]](
    tuple[Bundle, ...], config=pydantic.ConfigDict(ser_json_inf_nan="constants")
)
"""Content of a worker's file. NaN as null would be published as 0."""


class Telemetry(Model):
    """The outcome of a visit-detector."""

    timestamp: float
    """When it ended, UTC seconds since 1970."""
    node: str
    instrument: str
    group: str
    detector: int
    attempt: int
    """Number of the attempt with this outcome, from 1."""
    survey: str
    outcome: str
    reason: str
    pipeline: str
    exposures: int
    """Number of exposures that were processed."""
    datasets: int
    """Number of datasets that are exported."""
    prepare_s: float | None
    """From the announcement until the worker was prepared; `None` if it was not."""
    alerts_s: float | None
    """From shutter close to the end of the last task; `None` if it did not end."""
    total_s: float | None
    """From shutter close to the outcome; `None` without a raw."""


class PublisherSettings(Model):
    """The first packet to a publisher, and again when they change."""

    type: Literal["settings"] = "settings"
    publish: tuple[Publication, ...]
    folder: str
    """Folder of the workers' files."""
    log_level: str
    log_format: Literal["json", "console"]


class Publish(Model):
    """Order to publish the outcome of a visit-detector, and its metrics."""

    type: Literal["publish"] = "publish"
    telemetry: Telemetry
    file: str
    """Name of the worker's file with its metrics, which exists if there are any."""


type PublisherOrder = Annotated[PublisherSettings | Publish, BY_TYPE]
PUBLISHER_ORDERS = pydantic.TypeAdapter[PublisherOrder](PublisherOrder)


class PublisherReady(Model):
    """The publisher takes orders."""

    type: Literal["publisher_ready"] = "publisher_ready"
    pid: int


class PublishReport(Model):
    """Counts of a publisher since its start; sent when they change."""

    type: Literal["published"] = "published"
    orders: int
    """Orders whose records are in the counts."""
    places: tuple[DestinationReport, ...]


type PublisherFact = Annotated[PublisherReady | PublishReport, BY_TYPE]
PUBLISHER_FACTS = pydantic.TypeAdapter[PublisherFact](PublisherFact)
