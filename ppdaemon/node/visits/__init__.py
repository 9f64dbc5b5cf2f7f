# SPDX-License-Identifier: BSD-3-Clause
"""Visits from announcement to outcome.

`core` decides, with its parts for raws (`delivery`), permits (`permits`) and
exported outputs (`exports`), and the rules of `requeue` for repeated attempts. `pump`
commits each decision to the `journal` and performs its actions. `chooser`
selects pipelines and `reprocess` reads journal and disk before a decision
needs them.
"""
