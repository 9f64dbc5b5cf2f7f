# SPDX-License-Identifier: BSD-3-Clause
"""Metrics and telemetry for Kafka and its REST proxies; imports no code of a process, and no ``lsst``."""
