# SPDX-License-Identifier: BSD-3-Clause
"""The ``direct`` engine: all that needs no pixels is done before them, and tasks hand on objects.

`shape` knows a pipeline, `dataids` and `inputs` what is there, `quanta`
decides what is to be done. `memory` hands objects on, `prefetch` reads ahead,
`files` are read and written, `writing` writes beside the tasks and after them,
`tasks` are constructed beforehand, `run` runs them, some of them `forked`.
`engine` puts these together.
"""
