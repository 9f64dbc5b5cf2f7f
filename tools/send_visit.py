#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Announce a visit to a relay, or cancel one, as the script queue would."""

from ppdaemon.ctl.send import main

if __name__ == "__main__":
    main()
