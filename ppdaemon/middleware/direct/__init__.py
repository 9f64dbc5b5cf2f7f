# SPDX-License-Identifier: BSD-3-Clause
"""The ``direct`` engine: all that needs no pixels is done before them, and tasks hand on objects.

`shape` knows a pipeline, `habits` how tasks use their Butler, `dataids` and
`inputs` what is there, `quanta` decides what is to be done. `memory` hands
objects on, `store` reads ahead, `files` reads and writes, `tasks` are
constructed beforehand, `run` runs them. `engine` puts these together.
"""
