#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Write raws as a camera would, at a cadence, with faults on request."""

from ppdaemon.demo.simulate import cli

if __name__ == "__main__":
    cli()
