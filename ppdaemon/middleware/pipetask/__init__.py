# SPDX-License-Identifier: BSD-3-Clause
"""The ``pipetask`` engine: the command-line program in a separate process."""
