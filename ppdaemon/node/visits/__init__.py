# SPDX-License-Identifier: BSD-3-Clause
"""Visits from announcement to outcome.

`core` decides, `recorder` commits what was decided, `pump` carries out the
rest; `chooser`, `recovery` and `requeue` collect the facts that a decision
needs from a thread or a file before it is made.
"""
