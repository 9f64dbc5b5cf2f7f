# SPDX-License-Identifier: BSD-3-Clause
"""What the zygote rehearses for the first visits of its workers, in a process of its own."""

import json
import signal
import subprocess
import sys

import pytest

from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.node.lock import lock_node
from ppdaemon.testing.node import node_config

REHEARSE = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from ppdaemon.config import NodeConfig
from ppdaemon.folders import NodeFolders
from ppdaemon.middleware import work
from ppdaemon.worker import warmup

work.set_up_libraries()
config = NodeConfig.model_validate_json(sys.argv[1])
folder = NodeFolders.of(config).ramdisk
folder.mkdir(parents=True)
try:
    library = warmup.warm_up(work, config)
except Exception as error:
    print(json.dumps(f"{type(error).__name__}: {error}"))
    sys.exit()
for path in config.pipelines.paths:
    Path(path).unlink(missing_ok=True)
loaded, _ = library.load(config.pipelines.paths)
if "felis.datamodel" in sys.modules:
    from ppdaemon.middleware.pipelines.schemayaml import _pickled, safe_load
    assert _pickled.cache_info().currsize == 1, "the schema is read before the fork"
    assert sys.modules["felis.datamodel"].yaml.safe_load is safe_load
assert all(each.graph.is_fully_resolved for each in loaded)
print(json.dumps([[each.name for each in loaded], os.listdir(folder)]))
"""
KILLED = """
import os, signal, sys
from ppdaemon.config import NodeConfig
from ppdaemon.middleware import rehearsal, work
from ppdaemon.worker import warmup

work.set_up_libraries()
rehearsal.warm_up = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
warmup.warm_up(work, NodeConfig.model_validate_json(sys.argv[1]))
"""
TASK = "from ppdaemon.middleware.direct.warmup import WarmupTask\n"
MODULES = {
    "plain": TASK,
    "threaded": f"{TASK}import threading as t\nt.Thread(target=t.Event().wait, daemon=True).start()\n",
    "crashing": f"{TASK}import os\nos.abort()\n",
    "storing": f"{TASK}import felis.datamodel\n",
    "connected": f"{TASK}import sqlite3\nCONNECTION = sqlite3.connect(':memory:')\n",
}

pytestmark = pytest.mark.slow


def rehearse(folder, sockets, *names, **parts):
    """Rehearse pipelines, each with a task of the module of its name; return what is printed."""
    paths = []
    for name in names:
        (folder / f"{name}.py").write_text(MODULES.get(name, ""))
        paths.append(folder / f"{name}.yaml")
        if name in MODULES:
            paths[-1].write_text(f"description: {name}\ntasks:\n  {name}: {name}.WarmupTask\n")
    rules = {"main": [{"pipelines": list(map(str, paths))}]}
    config = NodeConfig.model_validate(node_config(folder, sockets, pipelines=rules, **parts))
    command = [sys.executable, "-c", REHEARSE, config.model_dump_json(), str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(ended.stdout), ended.stderr


def test_pipelines_are_parsed_once_unless_they_prevent_a_fork(tmp_path, socket_dir):
    found, log = rehearse(tmp_path, socket_dir, "plain", "missing", "threaded")
    assert found == [["plain"], []]
    assert f"each worker loads {tmp_path}/threaded.yaml by itself: it starts threads, or crashes" in log


def test_a_zygote_that_is_killed_meanwhile_leaves_nothing_after_a_stop(tmp_path, socket_dir):
    config = NodeConfig.model_validate(node_config(tmp_path, socket_dir))
    folders = NodeFolders.of(config)
    lock = lock_node(folders, "run")
    command = [sys.executable, "-c", KILLED, config.model_dump_json()]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert list(folders.ramdisk.glob("**/template*")), "it is killed in the middle"
    lock.release(folders)
    assert not folders.ramdisk.exists()


def test_a_pipeline_that_crashes_does_not_stop_the_zygote(tmp_path, socket_dir):
    found, log = rehearse(tmp_path, socket_dir, "plain", "crashing")
    assert found == [["plain"], []]
    assert f"each worker loads {tmp_path}/crashing.yaml by itself" in log


def test_the_schemas_of_databases_are_read_with_the_parser_in_c(tmp_path, socket_dir):
    found, _ = rehearse(tmp_path, socket_dir, "storing")
    assert found == [["storing"], []]


def test_an_instrument_that_cannot_be_imported_does_not_stop_the_zygote(tmp_path, socket_dir):
    parts = {"butler": {"central": "/repo", "instrument_class": {"LSSTComCam": "no_such.Instrument"}}}
    found, _ = rehearse(tmp_path, socket_dir, "plain", node={"instruments": {"LSSTComCam": [0]}}, **parts)
    assert found == [["plain"], []]


def test_an_open_database_is_found(tmp_path, socket_dir):
    found, _ = rehearse(tmp_path, socket_dir, "connected")
    assert found.startswith("RuntimeError: the rehearsal leaves <sqlite3.Connection object")


def test_a_datastore_of_another_kind_is_rehearsed_without_datasets(tmp_path, socket_dir):
    local = {"datastore": {"cls": "lsst.daf.butler.datastores.inMemoryDatastore.InMemoryDatastore"}}
    butler = {"central": "/repo", "instrument_class": {"n": "n.N"}, "local": local}
    found, log = rehearse(tmp_path, socket_dir, "plain", butler=butler)
    assert found == [["plain"], []]
    assert log.count("no dataset is written before the first visit of a worker") == 1
    assert "Traceback" not in log
