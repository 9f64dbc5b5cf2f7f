# SPDX-License-Identifier: BSD-3-Clause
"""A simulated camera, its sky and its pipelines: the quickstart and the tests run on it."""
