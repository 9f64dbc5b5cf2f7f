# SPDX-License-Identifier: BSD-3-Clause
"""Resolves the names in a configuration, in the environment of a worker.

A separate process: it imports all modules of the workers and may hang or crash in them, or in a
database that does not answer.
"""

import argparse
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from ppdaemon.config import NodeConfig
from ppdaemon.configfile import exceeds_unit
from ppdaemon.messages import PACKET_LIMIT, NameFact, NameFinding, NamesResolved, Resolving
from ppdaemon.states import ExitCode
from ppdaemon.wire import encode
from ppdaemon.work import WorkModule
from ppdaemon.worker.childmain import import_modules
from ppdaemon.worker.childsetup import ChildSettings, set_up_child

__all__ = ("main", "resolve_names")

TEXT_MAX = 2000
"""Longer texts are cut: a packet has a limit, and people read them."""


def resolve_names(config: NodeConfig) -> Iterator[NameFact]:
    """Import the modules of the workers, and yield what is wrong with their names and all others; at
    last what the service manager does not allow.
    """
    yield Resolving(what="the modules of the workers")
    for key, text in import_modules(config):
        yield NameFinding(level="error", key=key, text=text)
    if (module := sys.modules.get(config.workers.work)) is not None:
        work = cast(WorkModule, module)
        if hasattr(work, "resolve_names"):  # a site's own work may have no names of its own
            yield from work.resolve_names(config)
    for key, text in exceeds_unit(config):
        yield NameFinding(level="warning", key=key, text=text)
    yield NamesResolved()


def main() -> None:
    """Resolve all names, and send the findings."""
    parser = argparse.ArgumentParser(prog="ppdaemon-names", description=__doc__)
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the supervisor's socket")
    parser.add_argument("--lifeline", type=int, required=True, help="descriptor of the supervisor's pipe")
    parser.add_argument("--config", type=Path, required=True, help="the configuration as JSON")
    parser.add_argument("--log", required=True, help="file for the output")
    options = parser.parse_args()
    config = NodeConfig.model_validate_json(options.config.read_bytes())
    channel = socket.socket(fileno=options.channel)
    set_up_child(
        ChildSettings(
            title="ppdaemon names",
            log=options.log,
            lifeline=options.lifeline,
            keep=(options.channel, options.lifeline),
            # At the start it competes with the zygote, for which visits wait.
            nice=max(config.workers.nice, 10),
            seed=time.time_ns() ^ os.getpid(),
        )
    )
    # As the folder of a daemon under systemd: a relative path must not be found by chance.
    os.chdir("/")
    status = ExitCode.SOFTWARE
    try:
        for fact in resolve_names(config):
            if isinstance(fact, NameFinding):
                fact = fact.model_copy(update={"text": fact.text[:TEXT_MAX]})
            packet = encode(fact)
            assert len(packet) <= PACKET_LIMIT
            channel.send(packet)
        status = ExitCode.OK
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Without the interpreter's shutdown, in which threads of libraries may hang.
        os._exit(status)


if __name__ == "__main__":
    main()
