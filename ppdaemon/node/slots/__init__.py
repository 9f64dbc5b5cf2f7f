# SPDX-License-Identifier: BSD-3-Clause
"""The slots of a node: their states, their workers, and the assignment of visits to them."""
