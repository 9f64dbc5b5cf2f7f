# SPDX-License-Identifier: BSD-3-Clause
"""What tasks do with libraries for classifiers and compiled code; the models have random weights.

A function without a model loads it itself; the modules in `MODELS` load theirs when they are
imported.
"""

import functools
import time

import numpy as np

WEIGHTS = (4096, 4640)
"""Of 4 bytes each: 76 MB."""
IMAGES = 8


@functools.cache
def weights():
    """Return the weights of a layer."""
    return np.random.default_rng(1).standard_normal(WEIGHTS, dtype=np.float32)


def images():
    return np.random.default_rng(2).standard_normal((IMAGES, WEIGHTS[0]), dtype=np.float32)


def check(scores):
    """Raise AssertionError if a result differs from numpy's."""
    np.testing.assert_allclose(scores, images() @ weights(), rtol=1e-3, atol=1e-2)


def run_torch():
    import torchmodel

    check(torchmodel.run(images()))


def run_torch_without_end():
    import torchmodel

    while True:
        torchmodel.run(images())


def run_onnxruntime():
    import onnxmodel

    check(onnxmodel.run(images()))


def run_numba():
    import numbamodel

    check(numbamodel.run(images()))


def run_sklearn():
    import sklearnmodel

    assert sklearnmodel.run(images()).shape == (IMAGES,)


def run_duckdb():
    import duckdb

    with duckdb.connect(config={"threads": 1}) as connection:
        total = connection.execute("SELECT sum(i % 7) FROM range(100000) AS t(i)").fetchone()
    assert total == (sum(i % 7 for i in range(100_000)),)


def run_polars():
    import polars

    frame = polars.DataFrame({"visit": np.arange(100_000) % 7, "flux": np.ones(100_000)})
    sums = frame.lazy().group_by("visit").agg(polars.col("flux").sum()).sort("visit").collect()
    assert sums["flux"].sum() == 100_000


def run_tqdm():
    from tqdm import tqdm

    for _ in tqdm(range(3)):
        time.sleep(0.01)


def run_joblib():
    from joblib import Parallel, delayed

    assert Parallel(n_jobs=2)(delayed(abs)(-k) for k in range(4)) == [0, 1, 2, 3]


def run_numexpr():
    import numexpr

    values = np.arange(100_000.0)
    np.testing.assert_allclose(numexpr.evaluate("2 * values + 1"), 2 * values + 1)


def run_dask():
    import dask.array

    assert dask.array.ones((1000, 1000), chunks=(100, 100)).sum().compute() == 1_000_000
