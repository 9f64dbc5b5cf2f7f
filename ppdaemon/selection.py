# SPDX-License-Identifier: BSD-3-Clause
"""Which pipelines for which visit: rules, the first match wins.

Covers conditions on what a next_visit says. Does not cover sky maps.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import pydantic

from ppdaemon.visit import Name, NextVisit
from ppdaemon.wire import Model

__all__ = ("Rule", "select")


def _none_is_empty(value: Any) -> Any:
    """Take an empty ``pipelines:`` or the word None for an empty list."""
    return () if value is None or value == "None" else value


class Rule(Model):
    """Conditions on a visit, and the pipelines it gets."""

    instrument: Name | None = None
    """Short name of the instrument."""
    survey: Name | None = None
    """The next_visit's survey."""
    filter: Name | None = None
    """A physical filter among those that the visit accepts."""
    nimages: int | None = None
    """Number of snaps."""
    pipelines: Annotated[tuple[str, ...], pydantic.BeforeValidator(_none_is_empty)]
    """Pipeline files in order of preference; empty means ignore the visit."""

    @pydantic.field_validator("pipelines")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a pipeline is named twice")
        return value

    def matches(self, visit: NextVisit) -> bool:
        """Tell whether all conditions hold for a visit.

        Parameters
        ----------
        visit : `~ppdaemon.visit.NextVisit`
            The announcement.

        Returns
        -------
        matches : `bool`
            A rule without conditions matches every visit.
        """
        return (
            self.instrument in (None, visit.instrument)
            and self.survey in (None, visit.survey)
            and self.nimages in (None, visit.nimages)
            and (self.filter is None or self.filter in visit.filter_names)
        )


def select(rules: Sequence[Rule], visit: NextVisit) -> tuple[str, ...] | None:
    """Return the pipelines of the first rule that matches.

    Parameters
    ----------
    rules : `~collections.abc.Sequence` [`Rule`]
        In order.
    visit : `~ppdaemon.visit.NextVisit`
        The announcement.

    Returns
    -------
    pipelines : `tuple` [`str`] or `None`
        Empty if the rule says to ignore the visit, `None` if no rule matches.
    """
    return next((rule.pipelines for rule in rules if rule.matches(visit)), None)
