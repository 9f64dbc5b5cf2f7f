# SPDX-License-Identifier: BSD-3-Clause
"""Exports outputs from the worker's repo to the central one: spool, registration."""
