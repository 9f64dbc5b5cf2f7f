# SPDX-License-Identifier: BSD-3-Clause
"""A worker as a fresh interpreter, for stacks that cannot be forked.

Imports the modules that otherwise the zygote imports; the rest is the same.
"""

import argparse
import socket
from functools import partial
from pathlib import Path

from ppdaemon.config import NodeConfig
from ppdaemon.messages import PACKET_LIMIT, ZYGOTE_ORDERS
from ppdaemon.wire import decode
from ppdaemon.worker.childmain import inherited, run_child

__all__ = ("main",)


def main() -> None:
    """Run one process: worker, exporter, asker or template."""
    parser = argparse.ArgumentParser(prog="ppdaemon-worker", description=__doc__)
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the supervisor's socket")
    parser.add_argument("--lifeline", type=int, required=True, help="descriptor of the supervisor's pipe")
    parser.add_argument("--config", type=Path, required=True, help="the configuration as JSON")
    parser.add_argument("--order", required=True, help="role, slot and folders of this process as JSON")
    options = parser.parse_args()
    config = NodeConfig.model_validate_json(options.config.read_bytes())
    order = decode(options.order.encode(), ZYGOTE_ORDERS, limit=PACKET_LIMIT)
    channel = socket.socket(fileno=options.channel)
    run_child(order, channel, options.lifeline, config, partial(inherited, config))


if __name__ == "__main__":
    main()
