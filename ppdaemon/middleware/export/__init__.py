# SPDX-License-Identifier: BSD-3-Clause
"""From the worker's repo to the central one: spool, registration."""
