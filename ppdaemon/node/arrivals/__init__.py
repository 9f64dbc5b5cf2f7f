# SPDX-License-Identifier: BSD-3-Clause
"""How the supervisor learns of raws: sources, completeness, and what landed.

`arrivals` composes it. `rootsource` (with `watch`, `walk`, `mounts`), `notices`
and `stores` are the sources: they report a `~ppdaemon.node.arrivals.roots.Sighting`.
`completion` keeps each as a `~ppdaemon.node.arrivals.pending.PendingRaw` until
it is complete and `exposures` knows its group, and delivers a
`~ppdaemon.messages.Raw`; `index` remembers those. Files are looked at in
`threads`, by `files`.
"""
