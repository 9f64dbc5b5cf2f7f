# SPDX-License-Identifier: BSD-3-Clause
"""What becomes of the findings about names while their configuration is in use."""

import asyncio
import logging
import time
from types import SimpleNamespace

import pytest

from ppdaemon.errors import ConfigError
from ppdaemon.node.processes import names
from ppdaemon.node.processes.names import NameCheck, Resolution
from ppdaemon.testing.waiting import TIMEOUT_S

AWAY = Resolution(unavailable=("the database is away",))
FINE = Resolution()


class Checked:
    """A `NameCheck` whose process has the given findings, one after the other, the last one for ever."""

    def __init__(self, monkeypatch, *findings):
        self.findings = list(findings)
        self.limits_s = []
        self.stopped = 0
        monkeypatch.setattr(names, "resolve", self.resolve)
        self.check = NameCheck(None, {}, None, lambda: 0.0, self.stop_accepting)

    async def resolve(self, file, *options):
        self.limits_s.append(options[-1])
        return self.findings.pop(0) if len(self.findings) > 1 else self.findings[0]

    def stop_accepting(self):
        self.stopped += 1

    def use(self, *further):
        """Use a configuration and run until it has the last findings; then one with further findings."""

        async def body():
            await self._use()
            if further:
                self.findings = list(further)
                await self._use()

        asyncio.run(body())

    async def _use(self):
        file = SimpleNamespace(config=SimpleNamespace(export=SimpleNamespace(retry_s=0.001)))
        self.check.use(file, await self.check.resolve(file))
        running = asyncio.create_task(self.check.run())
        deadline = time.monotonic() + TIMEOUT_S
        while len(self.findings) > 1 or self.check._resolution is not self.findings[0]:
            assert time.monotonic() < deadline, self.findings
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO)
    return lambda level, text: sum(r.levelname == level and text in r.message for r in caplog.records)


def test_what_cannot_be_resolved_is_a_problem_until_it_is_resolved(monkeypatch, lines):
    checked = Checked(monkeypatch, AWAY, AWAY)
    checked.use()
    assert checked.check.problems == ("not resolved yet: the database is away",)
    assert lines("WARNING", "the database is away; it is resolved later") == 1
    checked = Checked(monkeypatch, AWAY, AWAY, FINE)
    checked.use()
    assert checked.check.problems == ()
    assert lines("INFO", "all names of the configuration have been resolved") == 1


def test_each_further_check_of_a_configuration_has_more_time(monkeypatch):
    """On a busy host the imports alone may take longer than the first limit."""
    checked = Checked(monkeypatch, AWAY, AWAY, AWAY, AWAY, FINE)
    checked.use(AWAY, FINE)
    assert checked.limits_s == [90.0, 180.0, 360.0, 360.0, 360.0, 90.0, 180.0]


def test_a_warning_that_is_found_later_is_logged_once(monkeypatch, lines):
    later = Resolution(warnings=("matches nothing",), fallbacks=("is dropped",), unavailable=AWAY.unavailable)
    checked = Checked(monkeypatch, AWAY, later, later, Resolution(warnings=later.warnings))
    checked.use()
    assert (lines("WARNING", "matches nothing"), lines("WARNING", "is dropped")) == (1, 1)


def test_errors_refuse_a_configuration(monkeypatch):
    checked = Checked(monkeypatch, Resolution(errors=("no task asociate", "second")))
    with pytest.raises(ConfigError) as refused:
        asyncio.run(checked.check.resolve(None))
    assert refused.value.problems == ("no task asociate", "second")


@pytest.mark.parametrize("repeating", [(), ("no task asociate",)])
def test_an_error_that_is_found_later_stops_new_visits_if_they_could_be_doubled(
    monkeypatch, lines, repeating
):
    """Fault 78: the mount of a pipeline file comes back, and a name does not exist."""
    found = Resolution(errors=("no task asociate",), repeating=repeating)
    checked = Checked(monkeypatch, AWAY, found)
    checked.use()
    assert checked.check.problems == ("no task asociate",)
    assert checked.stopped == len(repeating)
    assert lines("CRITICAL", "correct the file, ppctl reload, then ppctl resume") == len(repeating)


def test_an_operator_who_resumes_is_not_overruled_by_the_same_error(monkeypatch, lines):
    first = Resolution(errors=("no task",), repeating=("no task",), unavailable=AWAY.unavailable)
    both = Resolution(errors=("no task", "second"), repeating=("no task",), unavailable=AWAY.unavailable)
    checked = Checked(monkeypatch, AWAY, first, first, both, both)
    checked.use()
    assert checked.stopped == 1
    assert (lines("ERROR", "no task"), lines("ERROR", "second")) == (1, 1)


def test_the_next_configuration_is_resolved_by_itself(monkeypatch, lines):
    """Errors are those of one configuration, and are reported again if the next one has them."""
    found = Resolution(errors=("no task",), repeating=("no task",))
    checked = Checked(monkeypatch, AWAY, found)
    checked.use(AWAY, found)
    assert checked.stopped == 2
    assert lines("ERROR", "no task") == 2
