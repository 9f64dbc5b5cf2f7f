# SPDX-License-Identifier: BSD-3-Clause
"""The template repo, made once per configuration by a process for it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from ppdaemon.errors import PPDaemonError
from ppdaemon.messages import Forked, ForkWorker
from ppdaemon.node.processes.child import Child, adopt

__all__ = ("TemplateBuild", "TemplateFailed", "last_lines", "size_of")

SLOT = -2


class TemplateFailed(PPDaemonError):
    """There is no template repo: no worker could start."""


def size_of(log: Path) -> int:
    """Return how much is in a log.

    Parameters
    ----------
    log : `pathlib.Path`
        The file.

    Returns
    -------
    size : `int`
        Bytes; 0 if there is no such file.
    """
    return log.stat().st_size if log.exists() else 0


def last_lines(log: Path, most: int = 15, *, since: int = 0) -> str:
    """Return the end of a log.

    Parameters
    ----------
    log : `pathlib.Path`
        The file.
    most : `int`, optional
        How many lines.
    since : `int`, optional
        What the log had before, bytes: that is old.

    Returns
    -------
    text : `str`
        Blank if there is no such file.
    """
    try:
        with log.open("rb") as stream:
            stream.seek(0, 2)
            size = stream.tell()
            # A log that was cut meanwhile is new from its beginning.
            stream.seek(max(since if since <= size else 0, size - 20_000))
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-most:])


class TemplateBuild:
    """One process that makes the template and ends.

    Parameters
    ----------
    repo, log : `pathlib.Path`
        The process's folder and the file of its output.
    """

    def __init__(self, repo: Path, log: Path):
        self._repo = repo
        self._log = log
        self._child: Child | None = None
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self, ask: Callable[[ForkWorker], bool], limit_s: float) -> None:
        """Have the template made.

        Parameters
        ----------
        ask : `~collections.abc.Callable`
            Gets the order for the process, returns whether it was asked.
        limit_s : `float`
            How long it may take.

        Raises
        ------
        TemplateFailed
            Raised with the end of its log if it was not made in time.
        """
        self._repo.mkdir(parents=True, exist_ok=True)
        order = ForkWorker(role="template", slot=SLOT, epoch=1, repo=str(self._repo), log=str(self._log))
        log_size = size_of(self._log)
        if not ask(order):
            self.failed("there is no zygote")
        try:
            problem = await asyncio.wait_for(self._ended, limit_s)
        except TimeoutError:
            problem = f"not made within {limit_s:g} s"
        finally:
            self.close()
        if problem:
            raise TemplateFailed(
                f"the template repo was not made: {problem}\n{last_lines(self._log, since=log_size)}"
            )

    def forked(self, words: Forked, descriptors: list[int]) -> None:
        """Take over the process.

        Parameters
        ----------
        words : `~ppdaemon.messages.Forked`
            What the zygote said.
        descriptors : `list` [`int`]
            Channel and pidfd.
        """
        self._child = adopt(words, descriptors)
        asyncio.get_running_loop().add_reader(self._child.pidfd, self._died)

    def failed(self, reason: str) -> None:
        """End the wait: there will be no process.

        Parameters
        ----------
        reason : `str`
            Why.
        """
        if not self._ended.done():
            self._ended.set_result(reason)

    def _died(self) -> None:
        """Its last word is READY, or it has failed."""
        assert self._child is not None
        try:
            word = self._child.channel.recv(4096)
        except OSError:
            word = b""
        self.failed("" if word else f"its process failed; see {self._log}")
        asyncio.get_running_loop().remove_reader(self._child.pidfd)

    def close(self) -> None:
        """Let go of the process."""
        if self._child is not None:
            asyncio.get_running_loop().remove_reader(self._child.pidfd)
            self._child.signal(9)
            self._child.close()
            self._child = None
