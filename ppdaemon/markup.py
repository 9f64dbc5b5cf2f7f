# SPDX-License-Identifier: BSD-3-Clause
"""HTML as Python calls. Text is escaped unless it was made here: names and reasons come from others."""

import html
from collections.abc import Iterable

from ppdaemon.terminal import plain

__all__ = ("Html", "tag")

_EMPTY = frozenset({"input", "link", "meta"})
"""Elements without content and end tag."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def _markup(child: object) -> str:
    match child:
        case Html():
            return child
        case None:
            return ""
        case str() | int() | float():
            return html.escape(plain(child))
        case Iterable():
            return "".join(map(_markup, child))
        case _:
            return html.escape(plain(child))


def tag(element: str, /, *children: object, **attributes: object) -> Html:
    """Return an element; children are text, `Html`, or iterables of them.

    In the names of attributes ``_`` stands for ``-``, and one at the end is dropped. An attribute
    with the value `None` or `False` is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(plain(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    end = "" if element in _EMPTY else f"{_markup(children)}</{element}>"
    return Html(f"<{element}{written}>{end}")
