# SPDX-License-Identifier: BSD-3-Clause
"""Visits from announcement to outcome.

`core` decides, and `requeue` for it what may be tried again; `pump` has what
was decided committed to the `journal`, then carries out the rest; `chooser` and
`facts` collect what a decision needs from a thread, the journal or the disk
before it is made.
"""
