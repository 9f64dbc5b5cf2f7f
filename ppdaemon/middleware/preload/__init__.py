# SPDX-License-Identifier: BSD-3-Clause
"""Copies inputs from the central repo before the image."""
