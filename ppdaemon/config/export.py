# SPDX-License-Identifier: BSD-3-Clause
"""How outputs get into the central repo."""

from collections.abc import Iterator
from typing import Annotated, Any

import pydantic

from ppdaemon.configtypes import (
    ConfigPart,
    Seconds,
    SecretPath,
    Size,
    WritableFolder,
    kafka_conflicts,
    needs_kafka,
    regular_expressions,
    valid_values,
)
from ppdaemon.publish.config import KafkaAddress, split_kafka
from ppdaemon.yamlfile import KeyPath


class WriterConfig(ConfigPart):
    """The observatory's own service that registers outputs (``prompt_processing_butler_writer``)."""

    to: KafkaAddress | None = None
    """``kafka://BROKER:PORT,BROKER:PORT/TOPIC``, from which the service reads events; `None`: the
    exporter registers outputs itself."""
    options: dict[str, str] = {}
    """Options of the Kafka client (librdkafka), such as ``security.protocol``."""
    password: SecretPath | None = None
    """File with ``sasl.password``; it is read again after a refusal."""
    timeout_s: Seconds = 30.0
    """Time limit of the acknowledgments."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find that Kafka cannot be used here, and a password that would not be used."""
        yield from kafka_conflicts(keys)
        if (to := valid_values(keys, "to")) and to[0] is not None and (problem := needs_kafka()):
            yield ("to",), problem

    @property
    def brokers(self) -> str:
        """The brokers of Kafka."""
        return split_kafka(self.to or "")[0]

    @property
    def topic(self) -> str:
        """The topic of Kafka."""
        return split_kafka(self.to or "")[1]


class ExportConfig(ConfigPart):
    """Outputs that are copied to the central repo."""

    types: Annotated[tuple[str, ...], pydantic.AfterValidator(regular_expressions)] = (
        r".*_metadata",
        r".*_log",
        r".*_config",
        "packages",
        "prompt_deployment",
        "preload_metrics",
        "promptPreload_metrics",
        "prompt_provenance",
    )
    """Regular expressions; a dataset type is exported if its whole name matches one."""
    images: Annotated[tuple[str, ...], pydantic.AfterValidator(regular_expressions)] = (
        "Exposure.*",
        ".*Image.*",
        "Mask.*",
    )
    """Regular expressions; a dataset type whose whole name, or whose storage class, matches one is
    an image: copied and registered after all others, and given up if too much waits."""
    copies: Annotated[int, pydantic.Field(ge=1, le=64)] = 4
    """Files that are copied to the central repo at once."""
    packers: Annotated[int, pydantic.Field(ge=0, le=64)] = 1
    """Processes of a low priority that compress images of ``lsst.images`` beside the exporter, as
    `butler.local` has it for them; with the engine ``direct`` workers then spool them uncompressed, which
    takes a fifth of the time and up to seven times the space, while `uncompressed_max` has room for them.
    0: workers compress."""
    uncompressed_max: Size = 2_000_000_000
    """Size of the uncompressed images that may wait for packers, at most a quarter of `ramdisk_max` and of
    `spill_max`, half of what is free on the disk, and 32 images for each packer. Beyond it, while half of
    `spill_max` waits, and while all cores are busy, workers compress."""
    ramdisk_max: Size = 0
    """Outputs of this size are spooled on the RAM disk first, where writing them takes less time; what
    exceeds it goes to `spill`. So does everything while exports fail. After a power failure, what was on
    the RAM disk is gone, although the relay has its outcomes; the next start names it. 0: all outputs go
    to `spill`."""
    spill: WritableFolder | None = None
    """Folder on a local disk where outputs wait for export, in ``ppdaemon-NAME``; it cannot change while
    the daemon runs. `None`: ``spool`` in `node.state_dir`, beside the journal."""
    spill_max: Annotated[Size, pydantic.Field(gt=0)] | None = None
    """Size of what may wait there. Above it, and if the RAM disk has no room either, the oldest outputs
    there lose their `images`; all other outputs stay. `None`: no limit but that of the disk, where
    visit-detectors end as ``state_full``."""
    gather_s: Annotated[float, pydantic.Field(ge=0, le=60)] = 1.0
    """An export begins when for this time no visit-detector has ended, at the latest after ten times as
    long: the detectors of an exposure share few transactions."""
    retry_s: Seconds = 5.0
    """Pause after a failed export. The next one begins with a small query: while the central repo is
    away it costs no more than that."""
    writer: WriterConfig = WriterConfig()

    @property
    def uncompressed_bytes(self) -> int:
        """Size of the uncompressed images that may wait; none lets other outputs be given up."""
        limits = filter(None, (self.ramdisk_max, self.spill_max))
        return min((self.uncompressed_max, *(limit // 4 for limit in limits)))
