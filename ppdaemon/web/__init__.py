# SPDX-License-Identifier: BSD-3-Clause
"""The web page of a node: a program of its own that reads the control socket of the daemon."""
