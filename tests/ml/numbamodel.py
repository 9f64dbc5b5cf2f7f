# SPDX-License-Identifier: BSD-3-Clause
"""A layer compiled by numba."""

import mltasks
import numba
import numpy as np

WEIGHTS = mltasks.weights()


@numba.njit("float32[:,:](float32[:,::1], float32[:,::1])")
def _layer(images, weights):
    scores = np.zeros((images.shape[0], weights.shape[1]), dtype=np.float32)
    for i in range(images.shape[0]):
        for k in range(weights.shape[0]):
            for j in range(weights.shape[1]):
                scores[i, j] += images[i, k] * weights[k, j]
    return scores


def run(images):
    return _layer(images, WEIGHTS)
