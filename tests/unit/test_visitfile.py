# SPDX-License-Identifier: BSD-3-Clause
"""Visits in files."""

import json

import pytest

from ppdaemon.errors import BadMessage
from ppdaemon.states import ExitCode
from ppdaemon.visitfile import read_event, read_visit


def test_a_file_is_read_as_it_is(tmp_path):
    fields = {"groupId": "g", "instrument": "LATISS", "novelty": [1]}
    file = tmp_path / "visit.json"
    file.write_text(json.dumps(fields))
    assert read_event(file) == fields


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON"), ("[]", "expected a JSON object, got list"), ('{"a":1,"a":1}', "twice")],
)
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path, text, words):
    file = tmp_path / "visit.json"
    file.write_text(text)
    with pytest.raises(BadMessage, match=words) as caught:
        read_event(file)
    assert str(file) in str(caught.value)
    assert caught.value.exit_code is ExitCode.DATA


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadMessage, match=r"none\.json: cannot be read: No such file"):
        read_event(tmp_path / "none.json")


def test_a_field_that_is_wrong_is_named_with_the_file(tmp_path):
    file = tmp_path / "visit.json"
    file.write_text(json.dumps({"groupId": "g", "instrument": "LATISS", "nimages": "two"}))
    with pytest.raises(BadMessage, match="nimages") as caught:
        read_visit(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_a_file_that_is_no_json_is_named_once(tmp_path):
    file = tmp_path / "visit.json"
    file.write_text("{")
    with pytest.raises(BadMessage, match="not JSON") as caught:
        read_visit(file)
    assert str(caught.value).count(str(file)) == 1
