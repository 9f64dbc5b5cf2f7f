# SPDX-License-Identifier: BSD-3-Clause
"""Prompt processing of telescope images on an observatory's own computers."""

__all__ = ("__version__",)

__version__ = "0.1.0"
