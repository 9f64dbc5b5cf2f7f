# SPDX-License-Identifier: BSD-3-Clause
"""Schemas that are read with the YAML parser in C."""

import io
import subprocess
import sys

import pytest
import yaml
from lsst.resources import ResourcePath

from ppdaemon.middleware.pipelines.schemayaml import safe_load

SCHEMA = "resource://lsst.sdm.schemas/apdb.yaml"
READ = f"""
import sys
import yaml
from ppdaemon.middleware.pipelines.schemayaml import read_schemas_faster, safe_load

read_schemas_faster()
assert "felis.datamodel" not in sys.modules, "nothing is imported for it"
import felis.datamodel
from felis import Schema

before = Schema.from_uri({SCHEMA!r}, context={{"id_generation": True}})
read_schemas_faster()
assert felis.datamodel.yaml.safe_load is safe_load is not yaml.safe_load
yaml.safe_load = None  # is not called any more
first, second = (Schema.from_uri({SCHEMA!r}, context={{"id_generation": True}}) for _ in range(2))
assert repr(first) == repr(second) == repr(before) and first is not second
assert first.tables[0].columns is not second.tables[0].columns
read_schemas_faster()
felis.datamodel.yaml = "another one"
read_schemas_faster()
assert felis.datamodel.yaml == "another one"
"""


def test_a_schema_is_the_same_and_a_new_one_each_time():
    subprocess.run([sys.executable, "-c", READ], check=True)


READ_ONCE = """
import sys
import yaml
from ppdaemon.middleware.pipelines.schemayaml import read_schemas_faster, rehearse_schema

rehearse_schema()
assert "felis.datamodel" not in sys.modules, "nothing is imported for it"
from lsst.dax.apdb.config import ApdbConfig
import felis.datamodel

read_schemas_faster()
rehearse_schema()
usual = ApdbConfig.model_fields["schema_file"].default
yaml.load = yaml.safe_load = None  # are not called any more
felis.datamodel.Schema.from_uri(usual, context={"id_generation": True})
"""


def test_the_usual_schema_is_parsed_once():
    subprocess.run([sys.executable, "-c", READ_ONCE], check=True)


def test_what_a_reader_changes_is_not_in_what_the_next_one_gets():
    content = "a: &x [1]\nb: *x"
    first = safe_load(content)
    first["a"].append(2)
    assert first["b"] == [1, 2], "one object with two names"
    assert safe_load(content) == {"a": [1], "b": [1]}


@pytest.mark.parametrize("package", ["apdb", "hsc"])
def test_both_parsers_find_the_same(package):
    content = ResourcePath(f"resource://lsst.sdm.schemas/{package}.yaml").read()
    found = safe_load(content)
    assert found == yaml.safe_load(content)
    assert found["tables"] is not safe_load(content)["tables"]


@pytest.mark.parametrize(
    "content",
    [
        "a: [1, 2.5, ~, yes, 2026-11-22, 0o7, 1:30]",
        "a: &x {b: 1}\nc: {<<: *x}",
        "\U0001f52d: \xe9",
        "",
        "a: 'b\n\n  c'",
    ],
)
def test_any_plain_yaml_is_the_same(content):
    assert safe_load(content) == safe_load(content.encode()) == yaml.safe_load(content)
    assert safe_load(io.StringIO(content)) == yaml.safe_load(content)


@pytest.mark.parametrize("content", ["a: [", "a:\n\tb: 1", "!!python/object:os.system {}", "a: *b", "\0"])
def test_errors_are_the_same(content):
    with pytest.raises(yaml.YAMLError) as expected:
        yaml.safe_load(content)
    with pytest.raises(type(expected.value)) as raised:
        safe_load(content)
    assert str(raised.value) == str(expected.value)
