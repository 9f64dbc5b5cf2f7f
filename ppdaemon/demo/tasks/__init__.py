# SPDX-License-Identifier: BSD-3-Clause
"""The PipelineTasks of the demo camera and the algorithms below them.

Each task module has the task, its connections and its configuration; the
modules without a task (`astrometry`, `cosmics`, `matching`, `photometry`,
`psf`, `warp`) have functions on arrays. No task reads the truth table.
"""
