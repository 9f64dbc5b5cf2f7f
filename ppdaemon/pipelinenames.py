# SPDX-License-Identifier: BSD-3-Clause
"""Names of pipelines, of what is overridden in them, and of the chains of their outputs. Pure."""

import os
import re

__all__ = ("PARAMETERS", "output_chain", "override_target", "pipeline_name")

PARAMETERS = "parameters"
"""In place of a label: an override of a parameter of the pipeline."""
_NO_LABEL = re.compile(r"[^\w.]+")


def pipeline_name(path: str) -> str:
    """Return the name of a pipeline as it is in the names of output runs.

    Parameters
    ----------
    path : `str`
        Pipeline file, optionally with ``#labels`` at the end.

    Returns
    -------
    name : `str`
        File name without suffix, such as ``ApPipe``, with its labels, such as
        ``ApPipe-isr``: subsets of one file are different pipelines.
    """
    file, _, labels = path.partition("#")
    # A folder with # is lost by lsst.resources, and commas separate collections.
    steps = [os.path.splitext(os.path.basename(file))[0], *_NO_LABEL.split(labels)]
    return "-".join(filter(None, steps))


def override_target(key: str) -> str:
    """Return what an override changes: a task's label, or a parameter as ``parameters:name``."""
    label = key.partition(":")[0]
    return key if label == PARAMETERS else label


def output_chain(instrument: str, day_obs: int) -> str:
    """Return the name of the chain of all outputs of a day (``YYYYMMDD``).

    For instance ``LSSTCam/prompt/output-2026-11-22``.
    """
    digits = f"{day_obs:08d}"
    return f"{instrument}/prompt/output-{digits[:4]}-{digits[4:6]}-{digits[6:]}"
