# SPDX-License-Identifier: BSD-3-Clause
"""What is observed of imports, in interpreters of their own."""

import json
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
