# SPDX-License-Identifier: BSD-3-Clause
"""What the package imports is what setup.py declares, no less and no more."""

import ast
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ppdaemon"
NOT_IMPORTED = {
    "pyarrow": "pandas writes Parquet with it",
}
"""Distributions that are needed without an import, and why."""
OPTIONAL = {
    "aiohttp": "by ppweb",
    "confluent-kafka": "where something is sent to Kafka",
    "fastavro": "where ppweb shows alerts",
    "lsst-dax-apdb": "where an alert database is configured",
    "lsst-images": "where its images are spooled uncompressed",
    "matplotlib": "where pictures are asked for",
    "opentelemetry-api": "where traces are configured",
    "opentelemetry-exporter-otlp-proto-http": "where traces are configured",
    "opentelemetry-sdk": "where traces are configured",
    "redis": "where Redis is configured",
}
"""Distributions of extras that the package itself imports, and when."""


def name_of(requirement: str) -> str:
    """Return a distribution's name in its normal form."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def declared(*lists: str) -> set[str]:
    """Return the distributions in lists of setup.py."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    return {
        name_of(element.value if isinstance(element, ast.Constant) else element.left.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id in lists
        for element in node.value.elts
    }


distributions = cache(packages_distributions)


@cache
def modules_of(path: Path) -> frozenset[str]:
    """Return the modules that a file imports."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module)
    return frozenset(modules)


def imported(paths: Iterable[Path]) -> set[str]:
    """Return the distributions of all modules that are imported, also inside of functions."""
    modules = set().union(*map(modules_of, paths))
    known = distributions()
    return {
        distribution_of(module, known)
        for module in modules
        if module.partition(".")[0] not in {"ppdaemon", *sys.stdlib_module_names}
    }


def distribution_of(module: str, known: dict[str, list[str]]) -> str:
    """Return the distribution that has a module; several share the name ``lsst``."""
    top = module.partition(".")[0]
    found = {name_of(name) for name in known.get(top, [top])}  # the tests' environment has no Sphinx
    if len(found) > 1:
        parts = module.split(".")
        # The modules of opentelemetry-api have no name of their own.
        named = {"-".join(parts[:end]).replace("_", "-") for end in range(1, len(parts) + 1)}
        found = found & named or found & {f"{top}-api"}
    (one,) = found
    return one


def test_every_import_is_declared():
    demo = set((PACKAGE / "demo").rglob("*.py"))
    assert imported(demo) <= declared("CORE", "DEMO")
    assert imported(set(PACKAGE.rglob("*.py")) - demo) - declared("CORE") == OPTIONAL.keys()
    assert OPTIONAL.keys() <= declared("DEMO", "KAFKA", "OTEL", "REDIS", "WEB")


def test_nothing_is_declared_that_is_not_imported():
    unused = declared("CORE", "DEMO", "KAFKA", "OTEL", "REDIS", "WEB") - imported(PACKAGE.rglob("*.py"))
    assert unused == NOT_IMPORTED.keys()


def test_every_import_of_the_documentation_is_declared():
    own = {"codetext"}
    assert imported((ROOT / "doc").rglob("*.py")) - own <= declared("CORE", "DOC")
