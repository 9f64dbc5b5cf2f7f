# SPDX-License-Identifier: BSD-3-Clause
"""What messages of several wires share."""

from typing import Annotated

import pydantic

PACKET_LIMIT = 131_072
"""Largest packet between supervisor and worker or zygote, bytes."""

Storable = Annotated[int, pydantic.Field(ge=-(1 << 63), lt=1 << 63)]
"""An integer of 64 bits: SQLite raises an error for a larger one."""
