# SPDX-License-Identifier: BSD-3-Clause
"""How the supervisor learns of raws: sources, completeness, what landed.

`merge` puts it together; `tree`, `mounts`, `watch`, `poll`, `scan`, `root` and
`notices` are the sources; `settle`, `candidate`, `patience`, `files`,
`exposures` and `index` say what a file is worth.
"""
