# SPDX-License-Identifier: BSD-3-Clause
"""The real daemon with two workers whose tasks use libraries for classifiers."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "process")]
