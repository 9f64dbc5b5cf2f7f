# SPDX-License-Identifier: BSD-3-Clause
"""The ``direct`` engine prepares a visit before the image and passes datasets between tasks in memory.

`shape` describes a pipeline; `dataids`, `inputs` and `lookups` find its
inputs; `quanta` builds the quanta. `tasks` constructs tasks and `prefetch`
reads inputs before the image. `quantumrunner` runs the quanta, some of them in
`forked` processes, with the Butler of `memory`. `files` and `writing` write
the outputs. `engine` puts these together.
"""
