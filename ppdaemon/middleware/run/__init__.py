# SPDX-License-Identifier: BSD-3-Clause
"""Running pipelines: what an engine is, init-outputs, the reference engine."""
