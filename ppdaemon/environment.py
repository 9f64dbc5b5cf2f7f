# SPDX-License-Identifier: BSD-3-Clause
"""Environment variables that processes of a node always have."""

__all__ = ("CHILD_ENVIRONMENT", "THREAD_VARIABLES")

THREAD_VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "POLARS_MAX_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
    "ARROW_IO_THREADS",
)
"""Numbers of threads of libraries."""

CHILD_ENVIRONMENT = {
    # Without these, imports start threads, and only a process of one thread can
    # be forked; they also prevent 60 x N threads in 60 workers.
    **dict.fromkeys(THREAD_VARIABLES, "1"),
    # Background threads of pyarrow, of polars, and of onnxruntime from version 1.29.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "_RJEM_MALLOC_CONF": "background_thread:false",
    "ORT_DISABLE_TELEMETRY": "1",
    # ``python -m`` imports from the current folder first: a file ``http.py`` there would replace a library.
    "PYTHONSAFEPATH": "1",
    # So that memory is returned to the system after a visit.
    "MALLOC_ARENA_MAX": "2",
    # Process titles must not overwrite the environment, by which the node lock
    # and tests find the processes of a daemon.
    "SPT_NOENV": "1",
}
"""Variables whose values a configuration cannot change."""
