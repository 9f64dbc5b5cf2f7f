# SPDX-License-Identifier: BSD-3-Clause
"""The test that the kit's documentation shows to a site, run as it stands there."""

import inspect
import textwrap

import pytest
import yaml

from ppdaemon import testing


@pytest.mark.slow
def test_the_example_of_the_kit_is_a_test_that_passes(tmp_path, monkeypatch):
    rules = [{"survey": "BLOCK-T1", "pipelines": None}, {"pipelines": [str(tmp_path / "Ap.yaml")]}]
    (tmp_path / "Ap.yaml").touch()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "ppdaemon.yaml").write_text(yaml.safe_dump({"pipelines": {"main": rules}}))
    monkeypatch.chdir(tmp_path)
    shown = inspect.getdoc(testing).partition("::\n")[2].partition("\n`ppdaemon.testing.node`")[0]
    names: dict = {}
    exec(compile(textwrap.dedent(shown), "example", "exec"), names)
    (example,) = (value for name, value in names.items() if name.startswith("test_"))
    example(tmp_path)
