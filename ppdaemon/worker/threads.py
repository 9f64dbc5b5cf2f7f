# SPDX-License-Identifier: BSD-3-Clause
"""The number of threads of numerical libraries in a worker."""

import os
import sys

from threadpoolctl import threadpool_limits

from ppdaemon.environment import THREAD_VARIABLES

__all__ = ("allow_threads",)


def allow_threads(number: int) -> None:
    """Let numerical libraries of this process use some threads, after the fork; also those that are
    imported later, and in its children.
    """
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(number)))
    threadpool_limits(number)  # BLAS and OpenMP, as far as they are loaded
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].set_cpu_count(number)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(number)
