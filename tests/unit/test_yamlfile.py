# SPDX-License-Identifier: BSD-3-Clause
"""YAML with lines: what is read, and the error of a broken file."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.errors import ConfigError
from ppdaemon.yamlfile import KeyPath, did_you_mean, expand, read_yaml


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "f.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_each_place_knows_its_line(tmp_path: Path) -> None:
    value, lines = read_yaml(written(tmp_path, "a:\n  b: 1\n  c:\n  - x\n  - {y: 2}\n"))
    assert value == {"a": {"b": 1, "c": ["x", {"y": 2}]}}
    assert lines["a",] == 1
    assert lines["a", "b"] == 2
    assert lines["a", "c", 1] == 5
    assert lines["a", "c", 1, "y"] == 5


def test_scalars_have_the_types_of_yaml(tmp_path: Path) -> None:
    text = "[1, 1.5, true, null, '1', 2025-11-22T03:25:16]"
    value, _ = read_yaml(written(tmp_path, text))
    assert value[:5] == [1, 1.5, True, None, "1"]


def test_numbers_that_all_versions_of_yaml_read_alike_are_read(tmp_path: Path) -> None:
    text = "[0, -0, 10, 8_000, 0x2a, 0.5, 08, '042', '1:30', 0o52, 2026-11-28T01:02:03]"
    assert read_yaml(written(tmp_path, f"a: {text}\n"))[0]["a"][:10] == [
        *(0, 0, 10, 8000, 42, 0.5),
        *("08", "042", "1:30", "0o52"),
    ]


def test_an_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "# nothing\n"))[0] == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: key 'a' occurs twice"),
        ("a: [1\nb: 2\n", "f.yaml:2: not YAML"),
        ("a: *missing\n", "f.yaml:1: not YAML"),
        ("a:\n\tb: 1\n", "f.yaml:2: not YAML"),
        (b"a: \xff\n", "not UTF-8 at byte 3"),
        ("b: 1\na: !!python/object:os.system x\n", "f.yaml:2: "),
        ("a: 2025-13-45\n", "f.yaml:1: "),
        ("a: &a [*a]\n", "f.yaml:1: "),
        ("a: &a\n  <<: *a\n", "f.yaml:1: nested more than"),
        ("a: 1\nb: {<<: 3}\n", "f.yaml:2: '<<' needs a mapping"),
        ("a: {<<: [{b: 1}, x]}\n", "f.yaml:1: '<<' needs a mapping"),
        ("b: 1\na: !!bool maybe\n", "f.yaml:2: 'maybe' is not a valid bool"),
        ("a: !!timestamp x\n", "f.yaml:1: 'x' is not a valid timestamp"),
        (f"a: {'9' * 5000}\n", f"f.yaml:1: '{'9' * 60}' is not a valid int"),
        ("a: 042\n", "f.yaml:1: '042' is a number in base 8 or 60"),
        ("a: [1, 0_3]\n", "f.yaml:1: '0_3' is a number in base 8 or 60"),
        ("a: 1:30\n", "f.yaml:1: '1:30' is a number in base 8 or 60"),
        ("a: {b: -30:15:10.5}\n", "f.yaml:1: '-30:15:10.5' is a number in base 8 or 60"),
        ("a: \x01\n", "not YAML: unacceptable character #x0001: special characters are not allowed in"),
        ("a: &a {b: 1, b: 2}\nc:\n  <<: *a\n", "f.yaml:1: key 'b' occurs twice"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(written(tmp_path, text))
    assert message in caught.value.problems[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{<<: *x, cc: 3}", {"aa": 1, "bb": 2, "cc": 3}),
        ("{bb: 5, <<: *x}", {"aa": 1, "bb": 5}),
        ("{<<: [*x, *y]}", {"aa": 1, "bb": 2, "dd": 4}),
        ("{<<: [*y, *x]}", {"aa": 1, "bb": 9, "dd": 4}),
        ("{<<: *z}", {"aa": 1, "bb": 7, "ee": 5}),
        ("{'<<': 1}", {"<<": 1}),
        ("{<<: []}", {}),
    ],
)
def test_merge_keys_are_those_of_yaml(tmp_path: Path, text: str, value: dict[str, int]) -> None:
    # By the specification of the merge key, and PyYAML 6.0.3. PyYAML 6.0.4 compares keys by the
    # identity of their strings, so that in a list of mappings the last one may win.
    document = f"x: &x {{aa: 1, bb: 2}}\ny: &y {{bb: 9, dd: 4}}\nz: &z {{<<: *x, bb: 7, ee: 5}}\nv: {text}\n"
    got, lines = read_yaml(written(tmp_path, document))
    assert got["v"] == value
    if value.get("aa"):
        assert lines["v", "aa"] == 1


def test_every_double_key_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_yaml(written(tmp_path, "a: 1\na: 2\nb: {c: 1, c: 2}\n"))
    assert len(caught.value.problems) == 2


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    path = written(tmp_path, "a: 1\n")
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        read_yaml(path)


def test_variables_are_replaced_at_every_depth() -> None:
    value = {"a": ["${X}/y", {"b": "${X}${Z}"}], "n": 3}
    unset: dict[KeyPath, list[str]] = {}
    assert expand(value, {"X": "x"}, unset) == {"a": ["x/y", {"b": "x${Z}"}], "n": 3}
    assert unset == {("a", 1, "b"): ["Z"]}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json_values)
def test_without_variables_nothing_changes(value: object) -> None:
    assert expand(value, {}, {}) == value


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("asociate", "; did you mean 'associate'?"),
        ("ASSOCIATE", "; did you mean 'associate'?"),
        ("isr", ""),
        ("associate", ""),
    ],
)
def test_a_hint_is_the_candidate_that_resembles_a_name(name: str, hint: str) -> None:
    assert did_you_mean(name, ["alerts", "associate"]) == hint
