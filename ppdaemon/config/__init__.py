# SPDX-License-Identifier: BSD-3-Clause
"""The configuration of a node, validated once at the start.

The docstring under each field is its documentation; ``etc/ppdaemon.yaml`` has
all keys. Rules for pipelines are in `ppdaemon.selection`, raw roots in
`ppdaemon.raws.roots`.
"""

from ppdaemon.commonconfig import LogConfig, MetricsConfig, SecurityConfig, TracesConfig, UsersAndGroups
from ppdaemon.config.arrivals import ArrivalsConfig, Publisher
from ppdaemon.config.export import ExportConfig, WriterConfig
from ppdaemon.config.node import NodeConfig, NodePart, load_node, read_node
from ppdaemon.config.processing import (
    ButlerConfig,
    EngineConfig,
    ExposuresConfig,
    PipelinesConfig,
    PreloadConfig,
)
from ppdaemon.config.shadow import ShadowConfig
from ppdaemon.config.visitsources import RedisConfig, RelayLink
from ppdaemon.config.workers import MemoryConfig, TimesConfig, WorkersConfig
