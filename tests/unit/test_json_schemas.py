# SPDX-License-Identifier: BSD-3-Clause
"""The output of ``--json`` keeps its version only as long as no field is removed or changed.

``python tests/unit/test_json_schemas.py`` writes the file with the fields of all models.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pydantic
import pytest
from doctools import DOC, codetext

from ppdaemon import reports
from ppdaemon.ctl import cli
from ppdaemon.ctl.manpages import commands_of
from ppdaemon.plan import models

STORED = Path(__file__).with_name("json_fields.json")
ADVICE = f"write it again: python {Path(__file__).name}"


def documented() -> list[str]:
    """Return the names of the models on the page about JSON."""
    page = (DOC / "reference" / "json.rst").read_text()
    return re.findall(r"^\.\. json-fields:: (\S+)$", page, re.MULTILINE)


def versions() -> dict[str, int]:
    return {"ppctl": reports.SCHEMA, "plan": models.SCHEMA}


def fields_of(name: str) -> dict[str, str]:
    """Return the types of a model's fields, as JSON schemas; without texts and defaults."""
    schema = resolve_name(name).model_json_schema(mode="serialization")
    return {field: json.dumps(bare(kind), sort_keys=True) for field, kind in schema["properties"].items()}


def bare(schema: Any) -> Any:
    match schema:
        case dict():
            hidden = ("title", "description", "default")
            return {key: bare(value) for key, value in schema.items() if key not in hidden}
        case list():
            return [bare(each) for each in schema]
    return schema


def lost(stored: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield the fields that were removed or have another type."""
    for name, fields in stored.items():
        for field, kind in fields.items():
            if now.get(name, {}).get(field) != kind:
                yield f"{name}.{field}"


def current() -> dict[str, Any]:
    return {"versions": versions(), "fields": {name: fields_of(name) for name in documented()}}


def test_a_field_that_is_lost_or_changed_has_incremented_the_version() -> None:
    stored = json.loads(STORED.read_text())
    changed = set(lost(stored["fields"], current()["fields"]))
    for name, version in versions().items():
        of_this = {field for field in changed if ("ppdaemon.plan." in field) == (name == "plan")}
        if version == stored["versions"][name]:
            assert not of_this, f"increment SCHEMA of {name}, then {ADVICE}"


def test_the_file_has_all_fields_of_this_version() -> None:
    assert json.loads(STORED.read_text()) == current(), ADVICE


def test_what_is_removed_or_changed_is_found_and_what_is_added_is_not() -> None:
    stored = {"a": {"x": "1", "y": "2"}, "b": {"z": "3"}}
    assert list(lost(stored, {"a": {"x": "1", "y": "2", "new": "4"}, "b": {"z": "3"}})) == []
    assert list(lost(stored, {"a": {"x": "0"}})) == ["a.x", "a.y", "b.z"]


def test_every_model_of_the_control_sockets_is_on_the_page() -> None:
    shown = {name.rpartition(".")[2] for name in documented()}
    rows = {name for name in vars(reports) if name.endswith(("Row", "Report", "Summary"))}
    assert rows <= shown


@pytest.mark.parametrize("name", documented())
def test_every_field_has_its_meaning(name: str) -> None:
    model = resolve_name(name)
    rows = re.findall(
        r"^   \* - ``(\w+)``\n     - .+\n     - (\S.*)$", codetext().json_fields(model), re.MULTILINE
    )
    assert [field for field, _ in rows] == [*model.model_fields, *model.model_computed_fields]


def test_a_field_without_a_meaning_ends_the_build() -> None:
    class Silent(pydantic.BaseModel):
        """Has no docstring below its field."""

        number: int

    with pytest.raises(codetext().Undocumented, match=r"Silent\.number has no docstring"):
        codetext().json_fields(Silent)


def test_every_model_in_another_is_on_the_page() -> None:
    nested = {
        name
        for model in documented()
        for name, schema in resolve_name(model)
        .model_json_schema(mode="serialization")
        .get("$defs", {})
        .items()
        if schema["type"] == "object"
    }
    # It has the names of SAL, which are not those of this project.
    assert nested - {"NextVisit"} <= {name.rpartition(".")[2] for name in documented()}


def test_the_page_has_the_versions() -> None:
    assert set(versions().values()) == {1}, "correct the sentence in doc/reference/json.rst"


def test_every_command_that_prints_json_is_on_the_page() -> None:
    page = (DOC / "reference" / "json.rst").read_text()
    missing = [
        name
        for name, command in commands_of(cli._ppctl).items()
        if any(option.name == "as_json" for option in command.params)
        and f"ppctl {name}``" not in page
        and name not in ("resume", "reload", "export", "restart", "kill")  # "drain and the like"
    ]
    assert missing == []


if __name__ == "__main__":
    STORED.write_text(json.dumps(current(), indent=1, sort_keys=True) + "\n")
