# SPDX-License-Identifier: BSD-3-Clause
"""Running pipelines: the interface of an engine, init-outputs, the ``separable`` engine."""
