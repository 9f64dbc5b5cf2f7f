# SPDX-License-Identifier: BSD-3-Clause
"""The PipelineTasks of the demo camera and the algorithms below them.

Each task module holds the task, its connections and its configuration; the
modules without a task (`astrometry`, `cosmics`, `matching`, `photometry`,
`psf`, `warp`) are functions on arrays. No task ever reads the truth table.
"""
