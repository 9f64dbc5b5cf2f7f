# SPDX-License-Identifier: BSD-3-Clause
"""Pipelines: their graphs, what they need, where their versions come from."""
