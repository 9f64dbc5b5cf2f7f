# SPDX-License-Identifier: BSD-3-Clause
"""The slots of a node: their states, their workers, and who gets which visit."""
