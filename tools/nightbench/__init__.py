# SPDX-License-Identifier: BSD-3-Clause
"""Parts of ``tools/bench_night.py``."""
