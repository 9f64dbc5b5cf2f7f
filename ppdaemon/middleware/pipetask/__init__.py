# SPDX-License-Identifier: BSD-3-Clause
"""The engine that is the command-line program, in a process of its own."""
