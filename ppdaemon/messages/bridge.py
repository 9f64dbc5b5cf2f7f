# SPDX-License-Identifier: BSD-3-Clause
"""A bridge of object stores and the nodes that ask it for notices."""

from typing import Literal

import pydantic

from ppdaemon.visit import Name
from ppdaemon.wire import Model

ASK_LIMIT = 4096
"""Largest question that a bridge accepts, bytes."""

NOTICES_LIMIT = 1_048_576
"""Largest frame that a node accepts from a bridge, bytes: a notice has at most 1 MB."""


class AskNotices(Model):
    """A node's question for the notices that it does not have. It asks again after each answer."""

    type: Literal["ask_notices"] = "ask_notices"
    node: Name
    request: int
    """Number of the question, repeated in the answer."""
    epoch: str = ""
    """The ring to which `number` belongs; blank if the node was never connected."""
    number: int = 0
    """The last notice that the node has."""
    age_s: float | None = None
    """Notices received within this time are sent again; in the first question of a run."""


class Notices(Model):
    """A bridge's answer; the notices follow, one in each frame, as they were received."""

    type: Literal["notices"] = "notices"
    request: int
    epoch: str
    first: int
    """Number of the first notice; the others follow without a gap."""
    lost: int = 0
    """Notices after the node's last one that the ring no longer has."""
    is_other: bool = False
    """Whether the ring is not the one of the question: what it had is lost."""
    newest_age_s: float | None = None
    """How long ago the bridge received its last notice; `None` if the ring is empty."""


ASK_NOTICES = pydantic.TypeAdapter[AskNotices](AskNotices)
NOTICES = pydantic.TypeAdapter[Notices](Notices)
