# SPDX-License-Identifier: BSD-3-Clause
"""What is observed of imports, in interpreters of their own."""

import json
import os
import subprocess
import sys

import pytest

PART = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
FILES = {
    "outer.py": "import middle\n",
    "middle.py": "import json\nimport part\nimport later\n",
    "part.py": PART,
    "later.py": PART,
    "slow.py": "import time\nimport content\ntime.sleep(0.05)\n",
    "content.py": "content = bytearray(20_000_000)\n",
    "broken.py": "import part\nraise RuntimeError\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def run(folder, script):
    prefix = f"import json, sys\nsys.path.insert(0, {str(folder)!r})\nfrom ppdaemon.worker.imports import *\n"
    done = subprocess.run([sys.executable, "-c", prefix + script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ["outer", "middle", "part"])
def test_the_innermost_module_that_starts_a_thread_is_found(folder, module):
    script = f"""
starter = ThreadStarter()
with observed_imports(starter.around):
    import {module}
print(json.dumps([starter.find("x"), starter.module, len(thread_names())]))
"""
    assert run(folder, script)[:2] == [True, "part"]


def test_a_module_that_fails_after_it_has_started_a_thread_is_found(folder):
    script = """
starter = ThreadStarter()
try:
    with observed_imports(starter.around):
        import broken
except RuntimeError:
    print(json.dumps(starter.module))
"""
    assert run(folder, script) == "part"


def test_modules_without_threads_are_not_named(folder):
    script = """
import threading
starter = ThreadStarter()
with observed_imports(starter.around):
    import slow, zipfile
import part
print(json.dumps([starter.module, thread_names()]))
"""
    module, names = run(folder, script)
    assert module == ""
    assert len(names) == 2


def test_imports_within_others_are_counted_once(folder):
    script = """
costs = ImportCosts()
with observed_imports(costs.around):
    import slow, content
    import zipfile
import outer
print(json.dumps([costs.slowest(1), list(costs.seconds), costs.seconds["slow"], costs.memory_bytes]))
"""
    slowest, modules, seconds, memory_bytes = run(folder, script)
    assert slowest == ["slow"]
    assert "content" not in modules
    assert "outer" not in modules
    assert seconds > 0.05
    assert 20_000_000 < memory_bytes < 40_000_000


def test_all_modules_that_workers_cannot_have_are_errors_of_the_configuration(folder):
    script = """
from types import SimpleNamespace
from ppdaemon.errors import ConfigError
from ppdaemon.worker.childmain import import_work
workers = SimpleNamespace(work="ppdaemon.testing.work", preload=("broken", "contents", "outer"), start="fork")
try:
    import_work(SimpleNamespace(workers=workers))
except ConfigError as error:
    print(json.dumps(error.problems))
"""
    raised, missing, threads = run(folder, script)
    assert raised == "workers.preload.0: broken cannot be imported: RuntimeError: "
    assert missing.startswith("workers.preload.1: contents cannot be imported: No module named 'contents'")
    assert missing.endswith("; did you mean 'content'?")
    assert threads.startswith("workers.preload.2: outer: later starts a thread when it is imported")


def ppctl(arguments, **environment):
    script = """
import sys
from ppdaemon.ctl.cli import main
try:
    main(sys.argv[1:])
finally:
    print(*sys.modules)
"""
    command = [sys.executable, "-c", script, *arguments]
    known = {name: value for name, value in os.environ.items() if name != "PYDANTIC_DISABLE_PLUGINS"}
    return subprocess.run(
        command, env=known | environment, capture_output=True, text=True, check=False
    ).stdout


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--version"], {}),
        (["--help"], {}),
        (["status", "--help"], {}),
        (["catchup", "run", "--help"], {}),
        ([], {"_PPCTL_COMPLETE": "bash_complete", "COMP_WORDS": "ppctl vis", "COMP_CWORD": "1"}),
    ],
)
def test_help_and_completion_import_neither_models_nor_tables(arguments, environment):
    output = ppctl(arguments, **environment)
    assert not {"pydantic", "rich", "asyncio", "ppdaemon.reports", "numpy", "zmq", "yaml"} & {
        *output.split()
    }, output
    assert environment.get("COMP_WORDS") is None or "plain,visit\nplain,visits\n" in output


@pytest.mark.parametrize(("environment", "loaded"), [({}, False), ({"PYDANTIC_DISABLE_PLUGINS": ""}, True)])
def test_ppctl_loads_no_plugins_of_other_packages_unless_a_site_wants_it(tmp_path, environment, loaded):
    package = tmp_path / "other-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[pydantic]\nother = other:plugin\n")
    (tmp_path / "other.py").write_text(
        "class plugin:\n    new_schema_validator = staticmethod(lambda *_: (None, None, None))\n"
    )
    arguments = ["--socket", str(tmp_path / "none"), "status"]
    modules = ppctl(arguments, PYTHONPATH=str(tmp_path), **environment).split()
    assert "pydantic" in modules
    assert ("other" in modules) == loaded
