# SPDX-License-Identifier: BSD-3-Clause
"""The report of a night: what a node's journal has of it, as numbers and as a page."""
