# SPDX-License-Identifier: BSD-3-Clause
"""Directives whose content is made of the code at each build.

``slot-table``, ``slot-rules``, ``config-keys``, ``json-fields``, ``metrics-table``,
``module-map`` and ``program-help``.
"""

import importlib
import importlib.metadata
import io
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, get_origin, get_type_hints
from unittest import mock

import codetext
import pydantic
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docutils import SphinxDirective

from ppdaemon.states import SlotState

ROOT = Path(__file__).parents[2]
PUBLIC_PACKAGES = ("config", "messages", "reports")
"""Packages whose list of public names is their API."""
HELP_S = 120
"""How long a program may take to print its help on a loaded machine."""


def _object(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


class FromCode(SphinxDirective):
    """A directive that is replaced by what `text` returns."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return what the text describes."""
        return self.parse_text_to_nodes(self.text(), allow_section_headings=True)

    def text(self) -> str:
        """Return reStructuredText."""
        raise NotImplementedError


class SlotTable(FromCode):
    """``slot-table:: idle exporting``: what the states between these two do with each event."""

    def text(self) -> str:
        """Return the table."""
        every = list(SlotState)
        first, last = (every.index(SlotState(name)) for name in self.arguments[0].split())
        states = every[first : last + 1]
        shown = self.env.temp_data.setdefault("slot states shown", set())
        shown.update(states)
        return codetext.slot_table(states)


class SlotRules(FromCode):
    """``slot-rules::``: where each rule leads; checks that all states were shown."""

    def text(self) -> str:
        """Return the table."""
        if missing := set(SlotState) - self.env.temp_data.get("slot states shown", set()):
            raise self.error(f"states that no slot-table shows: {', '.join(sorted(missing))}")
        return codetext.slot_rules()


class ConfigKeys(FromCode):
    """``config-keys:: module.Model``: all keys of a configuration."""

    option_spec: ClassVar = {"prefix": directives.unchanged}

    def text(self) -> str:
        """Return an entry for each key."""
        return codetext.config_keys(_object(self.arguments[0]), self.options.get("prefix", ""))


class JsonFields(SphinxDirective):
    """``json-fields:: module.Model``: the fields of a model, and its JSON schema."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table, and the schema behind a summary that opens it."""
        model = _object(self.arguments[0])
        schema = nodes.literal_block(
            codetext.json_schema(model), codetext.json_schema(model), language="json"
        )
        return [
            *self.parse_text_to_nodes(codetext.json_fields(model)),
            nodes.raw("", f"<details><summary>JSON schema of {model.__name__}</summary>", format="html"),
            schema,
            nodes.raw("", "</details>", format="html"),
        ]


class MetricsTable(FromCode):
    """``metrics-table:: module.TABLE``: all metrics of a table."""

    def text(self) -> str:
        """Return the table."""
        return codetext.metrics_table(_object(self.arguments[0]))


class ModuleMap(FromCode):
    """``module-map:: package``: its modules, and what they have."""

    option_spec: ClassVar = {"skip": directives.unchanged}

    def text(self) -> str:
        """Return an entry for each module, class and function."""
        return codetext.module_map(self.arguments[0], self.options.get("skip", "").split())


def _help_of(main: Callable[[], None], words: list[str]) -> str:
    """Return what an installed program prints; in this process, which has imported all of it."""
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ, COLUMNS="80"),
        redirect_stdout(printed),
        suppress(SystemExit),
    ):
        main()
    return printed.getvalue()


class ProgramHelp(SphinxDirective):
    """``program-help:: ppctl status``: what the program prints with ``--help``."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Run the program."""
        program, *arguments = self.arguments[0].split()
        entry_points = importlib.metadata.entry_points(group="console_scripts", name=program)
        if entry_points:
            text = _help_of(entry_points[program].load(), [program, *arguments, "--help"])
        else:
            command = [sys.executable, *([] if program == "python" else [str(ROOT / program)]), *arguments]
            environment = {**os.environ, "COLUMNS": "80", "PYTHONWARNINGS": "ignore"}
            text = subprocess.run(
                [*command, "--help"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=HELP_S,
                check=True,
            ).stdout
        return [nodes.literal_block(text, text, language="text")]


def _plain_annotations(base: type[pydantic.BaseModel]) -> None:
    """Have autodoc show the types of fields without their validators."""
    for model in base.__subclasses__():
        if model.__module__.startswith("ppdaemon."):
            hints = get_type_hints(model)
            model.__annotations__ = {name: hints[name] for name in model.__annotations__}
        _plain_annotations(model)


def _prepare_autodoc(app: Sphinx) -> None:
    # Autodoc imports with TYPE_CHECKING set, which lsst's pydantic models do not survive.
    importlib.import_module("ppdaemon.middleware.run.engine")
    for name in ("ctl.client", "node.supervisor", "relay.config", "testing.work"):
        importlib.import_module(f"ppdaemon.{name}")
    _plain_annotations(pydantic.BaseModel)
    for name in PUBLIC_PACKAGES:
        _document_constants(importlib.import_module(f"ppdaemon.{name}"))


def _document_constants(package: ModuleType) -> None:
    """Let autodoc find the docstrings of the constants that a package imports from its modules."""
    listed = ModuleAnalyzer.for_module(package.__name__)
    listed.analyze()
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        analyzer = ModuleAnalyzer.for_module(module.name)
        analyzer.analyze()
        listed.attr_docs |= {
            key: text for key, text in analyzer.attr_docs.items() if key[0] == "" and key[1] in vars(package)
        }


def _skip_type(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out unions and aliases of types: their text is that of all their parts."""
    return True if isinstance(obj, pydantic.TypeAdapter) or get_origin(obj) is not None else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Make the directives known."""
    app.setup_extension("sphinx.ext.autodoc")
    for name, directive in (
        ("slot-table", SlotTable),
        ("slot-rules", SlotRules),
        ("config-keys", ConfigKeys),
        ("json-fields", JsonFields),
        ("metrics-table", MetricsTable),
        ("module-map", ModuleMap),
        ("program-help", ProgramHelp),
    ):
        app.add_directive(name, directive)
    app.connect("autodoc-skip-member", _skip_type)
    app.connect("builder-inited", _prepare_autodoc)
    # Pages are made of the code, which Sphinx does not watch: no page is reused.
    app.connect("env-get-outdated", lambda app, env, *_: list(env.found_docs))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
