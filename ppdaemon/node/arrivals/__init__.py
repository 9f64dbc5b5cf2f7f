# SPDX-License-Identifier: BSD-3-Clause
"""Finds raws as they arrive: sources, the check for completeness, and an index of delivered raws.

`arrivals` composes the parts. `rootsource` (with `watch`, `walk` and `watchmethods`),
`notices` and `stores` are the sources; each reports a `~ppdaemon.node.arrivals.roots.Sighting`.
`completion` turns it into a `~ppdaemon.node.arrivals.pending.PendingRaw` until the file is
complete and `exposurefacts` has its group, and then delivers a `~ppdaemon.messages.Raw`.
`index` stores delivered raws. `files` reads files, in `threads`.
"""
