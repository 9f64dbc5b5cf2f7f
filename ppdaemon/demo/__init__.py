# SPDX-License-Identifier: BSD-3-Clause
"""A simulated camera with its sky and pipelines, for the quickstart and the tests."""
