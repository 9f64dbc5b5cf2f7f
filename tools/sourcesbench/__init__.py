# SPDX-License-Identifier: BSD-3-Clause
"""Parts of ``tools/bench_sources.py``: each source of visits or notices in a module of its own."""
