# SPDX-License-Identifier: BSD-3-Clause
"""Passes the notices of object stores on to the nodes, and keeps them for those that were away."""
