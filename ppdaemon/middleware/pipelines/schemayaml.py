# SPDX-License-Identifier: BSD-3-Clause
"""Reads the schemas of databases with the YAML parser that is written in C.

``felis``, with which a client of the alert database reads the schema, uses the parser in Python and has no
setting for it. That takes most of the time in which a task opens the database: 130 of 165 ms of CPU time.
Each visit opens it again, and its schema is the same: a text is parsed once.
"""

import functools
import pickle
import sys
from types import ModuleType
from typing import Any

import yaml

__all__ = ("read_schemas_faster", "rehearse_schema", "safe_load")

_READER = "felis.datamodel"
_SCHEMA = "resource://lsst.sdm.schemas/apdb.yaml"
"""That of an alert database, if its configuration names no other one."""


def read_schemas_faster() -> None:
    """Let ``felis`` read YAML with `safe_load`, if it is imported and reads YAML as it is known to."""
    module: Any = sys.modules.get(_READER)
    if getattr(module, "yaml", None) is yaml and hasattr(yaml, "CSafeLoader"):
        # A module of its own: other packages have the parser that they import.
        module.yaml = ModuleType(yaml.__name__)
        vars(module.yaml).update(vars(yaml), safe_load=safe_load)


def rehearse_schema() -> None:
    """Read the usual schema of an alert database, if `read_schemas_faster` has found ``felis``: the first one
    takes ten times as long as any other. Raise an error of ``felis`` if it cannot be read.
    """
    module: Any = sys.modules.get(_READER)
    if module is not None:
        module.Schema.from_uri(_SCHEMA, context={"id_generation": True})


def safe_load(stream: Any) -> Any:
    """Return what `yaml.safe_load` returns, in an eighth of its time, and sooner if the text was read before;
    raise what it raises, but for texts that only the parser in C accepts, such as tabs behind a colon.
    """
    if isinstance(stream, str | bytes):  # nothing that can be read only once
        try:
            return pickle.loads(_pickled(stream))
        except (yaml.YAMLError, UnicodeError, RecursionError):
            pass  # the parser in Python takes more, and its messages are known
    return yaml.safe_load(stream)


@functools.lru_cache(8)  # a process reads few schemas, of some 100 kB
def _pickled(text: str | bytes) -> bytes:
    """Return the content of a text in a form from which each reader gets an object of its own."""
    return pickle.dumps(yaml.load(text, yaml.CSafeLoader))
