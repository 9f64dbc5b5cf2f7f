# SPDX-License-Identifier: BSD-3-Clause
"""Parts of ``tools/replay_night.py``."""
