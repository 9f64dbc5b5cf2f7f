# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of one publication."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.configtypes import (
    ConfigPart,
    Seconds,
    SecretPath,
    kafka_conflicts,
    needs_kafka,
    regular_expressions,
    valid_values,
)
from ppdaemon.yamlfile import KeyPath

__all__ = ("TELEMETRY", "KafkaAddress", "Publication", "split_kafka")

TELEMETRY = "telemetry"
"""Among the dataset types: the outcomes of visit-detectors."""

_KAFKA = re.compile(r"kafka://([^/\s]+:\d+)/([A-Za-z0-9._-]{1,249})")


def _kafka_address(value: str) -> str:
    if _KAFKA.fullmatch(value) is None:
        raise ValueError(f"{value} is not a topic: write kafka://BROKER:PORT,BROKER:PORT/TOPIC")
    return value


def _publish_address(value: str) -> str:
    if re.fullmatch(r"https?://[^/\s]+(/\S*)?", value):
        if "@" in value:  # it is shown and logged
            raise ValueError("an address must not have a password: write a bearer token to a file, see token")
        return value
    if value.startswith("kafka://"):
        return _kafka_address(value)
    raise ValueError(f"{value} is not an address: write kafka://BROKER:PORT/TOPIC or https://HOST/PATH")


KafkaAddress = Annotated[str, pydantic.AfterValidator(_kafka_address)]


def split_kafka(address: str) -> tuple[str, str]:
    """Return the brokers and the topic of an address; both are empty if it is another one."""
    match = _KAFKA.fullmatch(address)
    return (match[1], match[2]) if match else ("", "")


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Publication(ConfigPart):
    """Metrics or telemetry that are sent to a Kafka topic, or to a REST proxy of Kafka."""

    what: Annotated[
        tuple[str, ...],
        pydantic.BeforeValidator(_one_or_more),
        pydantic.AfterValidator(regular_expressions),
        pydantic.Field(min_length=1),
    ]
    """``telemetry``, the outcomes of visit-detectors, or regular expressions for types of
    metrics; one or a list. Metrics must also match ``export.types``."""
    to: Annotated[str, pydantic.AfterValidator(_publish_address)]
    """``kafka://BROKER:PORT,BROKER:PORT/TOPIC``, or the ``https://`` address of a REST proxy."""
    format: Literal["avro", "json"] = "json"
    """``avro``: as ``lsst.analysis.tools`` sends metrics to Sasquatch; by REST proxy only."""
    namespace: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")] = "lsst.prompt"
    """By REST proxy: the beginning of the topics, before the name of the metrics' action, or
    before ``visitDetector`` for telemetry."""
    token: SecretPath | None = None
    """File with the bearer token for the REST proxy; it may change at any time."""
    options: dict[str, str] = {}
    """Options of the Kafka client (librdkafka), such as ``security.protocol``."""
    password: SecretPath | None = None
    """File with ``sasl.password`` of Kafka; it is read again after a refusal."""
    queue: Annotated[int, pydantic.Field(ge=1)] = 10_000
    """Records that wait at most; then the oldest are dropped."""
    timeout_s: Seconds = 10.0
    """Time limit of one request, or of acknowledgments."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find keys that do not fit the address."""
        for to in valid_values(keys, "to"):
            kafka = to.startswith("kafka:")
            if kafka:
                yield from kafka_conflicts(keys)
                if problem := needs_kafka():
                    yield ("to",), problem
            if kafka and valid_values(keys, "format") == ("avro",):
                yield ("format",), "avro can be sent by a REST proxy only, which registers the schemas"
            if kafka and valid_values(keys, "token") not in ((), (None,)):
                yield ("token",), "only a REST proxy takes a token; see options for Kafka"
            for key, empty in (("options", {}), ("password", None)):
                if not kafka and valid_values(keys, key) not in ((), (empty,)):
                    yield (key,), f"only Kafka has {key}, not a REST proxy"

    @property
    def name(self) -> str:
        """Address and content, for people."""
        return f"{', '.join(self.what)} to {self.to}"

    @property
    def brokers(self) -> str:
        """The brokers of Kafka; empty for a REST proxy."""
        return split_kafka(self.to)[0]

    @property
    def topic(self) -> str:
        """The topic of Kafka; empty for a REST proxy."""
        return split_kafka(self.to)[1]

    def includes(self, dataset_type: str) -> bool:
        """Return whether metrics of a dataset type are published."""
        return any(re.fullmatch(each, dataset_type) for each in self.what if each != TELEMETRY)
