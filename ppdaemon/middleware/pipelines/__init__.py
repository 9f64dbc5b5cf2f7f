# SPDX-License-Identifier: BSD-3-Clause
"""Pipelines: their graphs, their inputs, and the names of their output runs."""
