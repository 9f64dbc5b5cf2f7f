# SPDX-License-Identifier: BSD-3-Clause
"""Converts bundles of metrics, and outcomes of visit-detectors, to records of a topic; pure.

Records of metrics and their Avro schemas are those of the ``SasquatchDispatcher`` of
``lsst.analysis.tools``, so that both can write into one topic.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppdaemon.errors import BadMessage
from ppdaemon.publish.config import TELEMETRY, Publication
from ppdaemon.publish.messages import Bundle, Telemetry

__all__ = ("Record", "bundle_records", "telemetry_records")

TELEMETRY_NAME = "visitDetector"
"""Last part of the topic of telemetry on a REST proxy."""
IDENTIFIERS = (
    "detector",
    "patch",
    "skymap",
    "visit",
    "tract",
    "physical_filter",
    "instrument",
    "band",
    "exposure",
    "group",
    "day_obs",
)
"""Dimensions that each record of metrics has, as text, empty where the dataset has none."""
GENERIC = "Generic"
"""Tag of a bundle without an identifier."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a topic."""

    topic: str
    key: str
    """Records of a visit-detector have the same, so that their order is kept."""
    value: Mapping[str, Any]
    schema: str | None
    """Avro schema as JSON; `None` if the record is sent as JSON."""


def bundle_records(bundle: Bundle, to: Publication) -> Iterator[Record]:
    """Yield one record for each action of a bundle that is to be published there.

    Raises `~ppdaemon.errors.BadMessage` if its content is no bundle of metrics.
    """
    if not to.includes(bundle.dataset_type):
        return
    content = dict(bundle.content)
    common = {
        "id": str(bundle.id),
        "run": bundle.run,
        "dataset_type": bundle.dataset_type,
        "reference_package": "",
        "reference_package_version": "",
        "reference_package_timestamp": 0.0,
        "run_timestamp": bundle.utc,
        "timestamp": bundle.utc,
        "dataset_tag": content.get("__dataset_identifier") or GENERIC,
        **{name: str(bundle.data_id.get(name, "")) for name in IDENTIFIERS},
    }
    prefix = content.get("__metricNamePrefix") or ""
    for action, measurements in content.items():
        if not action.startswith("__"):
            name = f"{prefix}{action}"
            try:
                values = _values(measurements)
            except (LookupError, TypeError) as error:
                raise BadMessage(f"{bundle.dataset_type} has no metrics in {action}: {error}") from error
            yield _record(name, {**common, "tags": [], **values}, _key(bundle.data_id), to)


def telemetry_records(telemetry: Telemetry, to: Publication) -> Iterator[Record]:
    """Yield the record of an outcome, if telemetry is to be published there."""
    if TELEMETRY in to.what:
        value = telemetry.model_dump(mode="json")
        yield _record(TELEMETRY_NAME, value, _key(value), to)


def _key(data_id: Mapping[str, Any]) -> str:
    return f"{data_id.get('instrument', '')} {data_id.get('detector', '')}"


def _values(measurements: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    """Return the values by metric; one that is missing is 0, one that is no finite number is left out."""
    found = {}
    for each in measurements:
        value = 0.0 if each["value"] is None else each["value"]
        if math.isfinite(value):
            found[str(each["metric"])] = value
    return found


def _record(name: str, value: Mapping[str, Any], key: str, to: Publication) -> Record:
    topic = to.topic or f"{to.namespace}.{name}"
    if to.format == "json":
        return Record(topic, key, value, None)
    # Avro's null would need another schema: a missing value is 0, as in Sasquatch.
    value = {field: 0.0 if each is None else each for field, each in value.items()}
    fields = [{"name": field, **_avro(field, each)} for field, each in value.items() if each != []]
    schema = {"type": "record", "namespace": to.namespace, "name": name, "fields": fields}
    return Record(topic, key, value, json.dumps(schema))


def _avro(field: str, value: object) -> Mapping[str, Any]:
    """Return the type of a field; that of an integer has 32 bits in Sasquatch, too."""
    if "timestamp" in field:
        return {"type": "double"}
    match value:
        case float():
            return {"type": "float", "default": 0.0}
        case str():
            return {"type": "string", "default": ""}
        case int():
            return {"type": "int", "default": 0}
        case _:
            raise AssertionError(value)
