# SPDX-License-Identifier: BSD-3-Clause
"""README.rst and the pages of ``doc/`` agree with the code."""

import re
import textwrap
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeAliasType

import click
import pydantic
import pytest
import yaml
from doctools import DOC, codetext
from docutils.parsers.rst.tableparser import SimpleTableParser
from docutils.statemachine import StringList

from ppdaemon.bridge.config import BridgeConfig
from ppdaemon.config import NodeConfig, Publisher, load_node
from ppdaemon.ctl import cli
from ppdaemon.ctl.manpages import PROGRAMS, commands_of
from ppdaemon.demo.nightreport import CameraReport, HostLoad, HostReport, Lateness, SimulatedNight
from ppdaemon.folders import NodeFolders
from ppdaemon.node.supervisor import EXPORT_AT_STOP_S
from ppdaemon.publish.config import Publication
from ppdaemon.raws.layout import CustomLayout
from ppdaemon.raws.roots import RemoteRoot, RootConfig
from ppdaemon.relay.config import RelayConfig, RelayInstrument, load_relay
from ppdaemon.selection import DecRange, RaRange, Rule
from ppdaemon.states import ExitCode, Outcome, SlotState, Stage

ROOT = DOC.parent
README = ROOT / "README.rst"
ENOUGH = 15
"""Characters of a message that are not a name that is filled in."""
OLD_WORDS = re.compile(r"\b(seats?|former li[fv]es?|last look|desk|verdict|naked)\b", re.IGNORECASE)


def section(name: str, path: Path = README) -> str:
    """Return the text between two markers."""
    found = re.search(
        rf"^\.\. {name}-begin$(.*)^\.\. {name}-end$", path.read_text(), re.MULTILINE | re.DOTALL
    )
    assert found, name
    return found[1]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_every_command_is_listed_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    commands = capsys.readouterr().out.partition("Commands:")[2]
    existing = set(re.findall(r"^  ([\w-]+) ", commands, re.MULTILINE))
    assert set(re.findall(r"^``([\w-]+)[^`]*``  ", section("ppctl-commands"), re.MULTILINE)) == existing


@pytest.mark.parametrize("program", sorted(PROGRAMS.keys() - {"send_visit"}))  # which is ppctl send
def test_the_help_of_every_command_is_shown_and_of_no_other(program: str) -> None:
    page = (DOC / "reference" / "programs.rst").read_text()
    shown = re.findall(rf"^\.\. program-help:: {program}(?: ([\w-]+))?$", page, re.MULTILINE)
    # Below their headings is the help of the program that they start.
    shown += {"demo", "simulate"} & {*re.findall(rf"^``{program} ([\w-]+)``$", page, re.MULTILINE)}
    assert sorted(shown) == ["", *commands_of(resolve_name(PROGRAMS[program][0]))]


def test_the_arguments_are_those_of_the_commands() -> None:
    commands = commands_of(cli._ppctl)
    for name, arguments in re.findall(r"^``([\w-]+) ([A-Z.]+)``", section("ppctl-commands"), re.MULTILINE):
        (argument,) = [p for p in commands[name].params if isinstance(p, click.Argument)]
        assert argument.make_metavar(click.Context(commands[name])) == arguments


def test_commands_in_the_text_exist() -> None:
    """Also those of upgrade and roll-back, which are written down as commands."""
    programs = {name: commands_of(resolve_name(PROGRAMS[name][0])) for name in ("ppctl", "ppdaemon")}
    options = r"(?:--(?:socket|config) \S+ |--relay |--bridge )*"
    for path in (README, *DOC.rglob("*.rst")):
        for program, name in re.findall(
            rf"(?:``|^ +(?:\$ )?)(ppctl|ppdaemon) {options}([a-z][a-z-]+)", path.read_text(), re.MULTILINE
        ):
            assert name in programs[program], f"{path.name}: {program} {name}"


def test_an_installation_makes_the_repo_before_it_starts_the_daemon() -> None:
    for path in (ROOT / "tools" / "install.sh", DOC / "operators" / "systemd.rst"):
        text = path.read_text()
        start = re.search(r"enable --now (?:run-ppramdisk.mount )?ppdaemon", text)
        assert start is not None, path
        assert 0 < text.index("central repo") < start.start(), path


def test_every_exit_code_is_listed_and_no_other() -> None:
    text = section("exit-codes", DOC / "operators" / "exit-codes.rst")
    assert [int(number) for number in re.findall(r"^(\d+) ", text, re.MULTILINE)] == sorted(ExitCode)


def test_every_outcome_is_listed_and_no_other() -> None:
    text = section("outcomes", DOC / "operators" / "outcomes.rst")
    assert re.findall(r"^   \* - ``(\w+)``$", text, re.MULTILINE) == list(Outcome)


def test_every_state_is_listed_and_no_other() -> None:
    text = section("states", DOC / "operators" / "states.rst")
    assert re.findall(r"^([a-z]+)  ", text, re.MULTILINE) == list(SlotState)


def test_every_stage_is_listed_and_no_other() -> None:
    text = section("stages", DOC / "operators" / "visits.rst")
    assert re.findall(r"^([a-z_]+)  ", text, re.MULTILINE) == list(Stage)


def test_the_configuration_by_hand_is_the_file_and_can_be_used() -> None:
    shown = textwrap.dedent(section("by-hand").partition("::\n")[2]).strip()
    path = ROOT / "etc" / "by-hand" / "ppdaemon.yaml"
    assert path.read_text().strip() == shown
    assert load_node(path, {"PWD": str(ROOT)}, writing=False).node.name == "hand"


def test_the_configuration_for_slurm_has_the_name_of_the_host_everywhere(tmp_path: Path) -> None:
    pipeline = tmp_path / "pipelines" / "ApPipe.yaml"
    pipeline.parent.mkdir()
    pipeline.touch()
    path = tmp_path / "ppdaemon.yaml"
    path.write_text((ROOT / "etc" / "slurm" / path.name).read_text().replace("/shared", str(tmp_path)))
    config = load_node(path, {"SLURMD_NODENAME": "host7"}, writing=False)
    folders = NodeFolders.of(config)
    used = (config.node.control, folders.state, folders.ramdisk, folders.spool)
    assert (config.node.name, [each for each in used if "host7" not in str(each)]) == ("host7", [])
    times = config.workers.times
    assert times.stop_s + times.grace_s + times.kill_s + EXPORT_AT_STOP_S < 30  # KillWait of Slurm


def test_relay_and_node_by_hand_fit_together(tmp_path: Path) -> None:
    relay = load_relay(ROOT / "etc" / "by-hand" / "pprelay.yaml", {"PWD": str(tmp_path)})
    node = load_node(ROOT / "etc" / "by-hand" / "ppdaemon.yaml", {"PWD": str(ROOT)}, writing=False)
    assert node.relay.address == relay.nodes
    assert {name: part.detectors for name, part in relay.instruments.items()} == node.node.instruments


@pytest.mark.parametrize(
    ("model", "prefix"),
    [
        (NodeConfig, ""),
        (RelayConfig, "pprelay:"),
        (RelayInstrument, "pprelay:instruments.NAME."),
        (BridgeConfig, "ppbridge:"),
        (RootConfig, "arrivals.roots[]."),
        (RemoteRoot, "arrivals.remote[]."),
        (Publication, "publish[]."),
        (Rule, "rule."),
        (RaRange, "rule.ra."),
        (DecRange, "rule.dec."),
        (CustomLayout, "arrivals.layout."),
        (Publisher, "arrivals.subscribe[]."),
    ],
)
def test_every_key_has_its_documentation(model, prefix) -> None:
    text = codetext().config_keys(model, prefix)
    assert text.count(".. confval:: ") == text.count("   :type: ") > 1


def models_in(annotation: Any) -> Iterator[type[pydantic.BaseModel]]:
    """Yield the models in a type, and those in their fields."""
    if isinstance(annotation, TypeAliasType):
        annotation = annotation.__value__
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_in(field.annotation)
    for part in typing.get_args(annotation):
        yield from models_in(part)


def shown_with(model: type[pydantic.BaseModel]) -> Iterator[type[pydantic.BaseModel]]:
    """Yield a model and those whose keys are below its own on the page."""
    yield model
    _, annotations = codetext()._fields_in_source(model)
    for name, field in model.model_fields.items():
        part = codetext()._model_in(field.annotation)
        if part is not None and codetext()._is_part(annotations[name]):
            yield from shown_with(part)


def test_the_page_has_each_model_of_a_configuration() -> None:
    page = (DOC / "reference" / "configuration.rst").read_text()
    names = re.findall(r"^\.\. config-keys:: (\S+)$", page, re.MULTILINE)
    shown = {model for name in names for model in shown_with(resolve_name(name))}
    assert shown == {*models_in(NodeConfig), *models_in(RelayConfig), *models_in(BridgeConfig)}


def test_the_documentation_has_the_keys_of_the_example() -> None:
    example = yaml.safe_load((ROOT / "etc" / "ppdaemon.yaml").read_text())
    shown = re.findall(r"^\.\. confval:: (.+)$", codetext().config_keys(NodeConfig), re.MULTILINE)
    found = {f"{part}.{key}" for part, keys in example.items() if isinstance(keys, dict) for key in keys}
    found |= {part for part, keys in example.items() if isinstance(keys, list)}
    assert found == {".".join(key.split(".")[:2]) for key in shown}


@pytest.mark.parametrize("model", [SimulatedNight, CameraReport, Lateness, HostReport, HostLoad])
def test_every_field_of_a_nights_report_has_its_meaning(model: type[pydantic.BaseModel]) -> None:
    table = codetext().json_fields(model)
    fields = re.findall(r"^   \* - ``(\w+)``\n     - .+\n     -(.*)$", table, re.MULTILINE)
    assert [name for name, _ in fields] == [*model.model_fields, *model.model_computed_fields]
    assert [name for name, meaning in fields if not meaning] == []
    assert f"ppdaemon.demo.nightreport.{model.__name__}\n" in (DOC / "reference" / "report.rst").read_text()


def test_every_package_is_in_the_reference() -> None:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "ppdaemon").rglob("__init__.py")
    }
    pages = [(DOC / "reference" / name).read_text() for name in ("modules.rst", "api.rst")]
    shown = re.findall(r"^\.\. (?:module-map|automodule):: (\S+)$", "\n".join(pages), re.MULTILINE)
    assert found - set(shown) == set()


def test_the_messages_in_the_documents_are_those_of_the_programs() -> None:
    text = (DOC / "operators" / "operations.rst").read_text().partition("If you see this message")[2]
    terms = re.findall(r"^``.+``.*$", text.partition("Answers of the relay")[0], re.MULTILINE)
    quoted = [message for term in terms for message in re.findall(r"``(.+?)``", term)]
    parts = [
        part.strip(" :,;()") for message in quoted for part in re.split(r"\.\.\.|\bN\b|[A-Z]{3,}", message)
    ]
    code = "".join(path.read_text() for path in (ROOT / "ppdaemon").rglob("*.py"))
    code = code.replace("the {self._name} ", "the journal ")  # one text for journal and ledger
    code = code.replace("another {program} ", "another pprelay ")
    assert len(quoted) > 30
    unknown = [part for part in parts if len(part) >= ENOUGH and part not in code]
    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize("path", [README, *sorted(DOC.rglob("*.rst"))], ids=lambda path: path.name)
def test_documents_use_the_words_of_the_programs(path: Path) -> None:
    text = re.sub(r":(?:mod|class|func):`[^`]*`", "", path.read_text())  # names in the code have their own
    assert not OLD_WORDS.findall(text)


TABLE = re.compile(r"^(=+(?: +=+)+)\n(?:.*\n)*?\1\n(?:.*\n)*?\1$", re.MULTILINE)


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.rst"), *DOC.rglob("*.rst")], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_the_text_of_each_table_is_in_its_columns(path: Path) -> None:
    for table in TABLE.finditer(path.read_text()):
        SimpleTableParser().parse(StringList(table[0].splitlines(), path.name))


def test_the_page_of_the_architecture_has_all_packages_and_their_order() -> None:
    page = (ROOT / "doc/developers/architecture.rst").read_text()
    packages = {path.parent.name for path in (ROOT / "ppdaemon").glob("*/__init__.py")}
    _, _, rest = page.partition("Folders and their imports")
    table, _, rules = rest.partition("* Only ``middleware``")
    assert packages <= set(re.findall(r"``(\w+)``", table)), "folders without a line"
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for package in ("node", "middleware"):
        (layers,) = (
            each["layers"] for each in contracts if each.get("containers") == [f"ppdaemon.{package}"]
        )
        _, _, rule = rules.partition(f"* In ``{package}``:")
        names = [name for layer in layers for name in re.findall(r"\w+", layer)]
        assert re.findall(r"``(\w+)``", rule)[: len(names)] == names
