# SPDX-License-Identifier: BSD-3-Clause
"""Takes bucket notifications from Kafka topics, in a consumer group that bridges may share.

An offset is committed when the ring has the notice: after a crash some come twice, which nodes detect.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from ppdaemon.bridge.config import NoticesConfig
from ppdaemon.errors import BadMessage, PPDaemonError
from ppdaemon.kafkaconsumer import KafkaConsumer, Place
from ppdaemon.throttle import Throttle, sample_of
from ppdaemon.wire import parse_json

__all__ = ("KafkaNotices",)

_LOG = logging.getLogger(__name__)

NOTICE_MAX = 1_000_000
"""Bytes, as nodes accept them."""
RETRY_S = 1.0
"""Pause before a notice is written again that could not be."""


class KafkaNotices:
    """The topics of one cluster; `store` returns when a notice is on the disk.

    Raises as `~ppdaemon.kafkaconsumer.KafkaConsumer` does.
    """

    def __init__(self, config: NoticesConfig, store: Callable[[bytes], Awaitable[None]], throttle: Throttle):
        self._topics = [*config.topics]
        self._store = store
        self._throttle = throttle
        self._client = KafkaConsumer(config.group, config.brokers, config.options, config.password)

    @property
    def problem(self) -> str:
        """Why no notices come, or they would come again after a restart."""
        return self._client.problem

    async def run(self) -> None:
        """Read until canceled."""
        try:
            await self._client.call(self._subscribe)
            while True:
                if self._client.check_is_due:
                    await self._client.call(self._check)
                messages = await self._client.call(self._client.take)
                # Together, so that they share a transaction.
                await asyncio.gather(*map(self._keep, messages))
                begins: dict[Place, int] = {}
                for message in messages:
                    begins[message.topic(), message.partition()] = message.offset() + 1
                await self._client.call(self._client.commit, begins)
        finally:
            await self._client.close()

    def _subscribe(self) -> None:
        self._client.consumer.subscribe(self._topics, on_revoke=self._revoked)

    def _check(self) -> None:
        with suppress(self._client.library.KafkaException):  # it is a problem then
            self._client.topics()

    def _revoked(self, _: object, partitions: list[Any]) -> None:
        self._client.forget([(each.topic, each.partition) for each in partitions])

    async def _keep(self, message: Any) -> None:
        """Store a notice, as often as needed; skip what none is."""
        body = message.value() or b""
        try:
            if not isinstance(parse_json(body, limit=NOTICE_MAX), dict | list):
                raise BadMessage("neither a JSON object nor a list", "content")
        except BadMessage as error:
            if self._throttle.passes(f"kafka {error.kind}"):
                context = {"topic": message.topic(), "reason": str(error), "sample": sample_of(body)}
                _LOG.warning("ignored a message of Kafka", extra=context)
            return
        while True:
            try:
                return await self._store(body)
            except PPDaemonError:  # the status shows the problem of the ring
                await asyncio.sleep(RETRY_S)
