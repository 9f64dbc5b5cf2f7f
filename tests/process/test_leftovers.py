# SPDX-License-Identifier: BSD-3-Clause
"""What tasks leave in a process: restored, or named."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ppdaemon.testing.leftovers import LEAVE
from ppdaemon.testing.waiting import wait_until
from ppdaemon.worker import leftovers as worker_leftovers
from ppdaemon.worker.leftovers import Leftovers, ScratchFolder
from ppdaemon.worker.statepart import Part

RESTORE_EACH = """
import json, sys
from pathlib import Path
from ppdaemon import log
from ppdaemon.testing.leftovers import LEAVE, describe
from ppdaemon.testing.waiting import wait_until
from ppdaemon.worker import leftovers as worker_leftovers
from ppdaemon.worker.leftovers import Leftovers, ScratchFolder
log.set_up("INFO", "json")
scratch = ScratchFolder(Path(sys.argv[1]))
scratch.use_for_temporary_files()
scratch.enter()
leftovers, output, found = Leftovers(["ppdaemon"]), sys.stdout, {}
for name, leave in LEAVE.items():
    before = describe()
    leave()
    left = describe()
    names = leftovers.restore()
    scratch.enter()
    after = describe()
    found[name] = before, left, after, *names
json.dump(found, output)
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """By name: the state before, with the leftovers, and after; what was restored; what remains."""
    command = [sys.executable, "-c", RESTORE_EACH, str(tmp_path_factory.mktemp("scratch"))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


ONE_CORE = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) == 1, reason="of one core a task can leave out none"
)


def kinds(names):
    """Return names of leftovers as parameters of a test; one of them needs several cores."""
    return [pytest.param(name, marks=ONE_CORE) if name == "processors" else name for name in names]


@pytest.mark.parametrize("name", kinds(LEAVE))
def test_what_a_task_leaves_is_removed(found, name):
    before, left, after, _, remaining = found[name]
    assert left[name] != before[name]
    assert after == before
    assert remaining == []


SILENT = {"directory", "files", "numpy random state", "random state", "start method of processes"}


@pytest.mark.parametrize("name", kinds(sorted(LEAVE.keys() - SILENT)))
def test_what_was_restored_is_named(found, name):
    named = {
        "captured warnings": "warnings",
        "variables of compiled code": "environment",
        "replaced environment": "environment",
        "hooks of threads": "hooks",
        "trace of threads": "hooks",
        "stream of a handler": "logging",
        "errors of handlers": "logging",
        "level of a logger": "logging",
        "level of a new logger": "logging",
        "handlers of logging": "logging",
    }
    assert named.get(name, name) in found[name][3]


LIBRARIES = {
    "pandas options": ("pandas.set_option('display.precision', 2)", "pandas.get_option('display.precision')"),
    # More than there are, on any machine.
    "threads of pyarrow": ("pyarrow.set_cpu_count(pyarrow.cpu_count() + 1)", "pyarrow.cpu_count()"),
    "threads of BLAS and OpenMP": (
        "threadpoolctl.threadpool_limits(1 + threadpoolctl.threadpool_info()[0]['num_threads'])",
        "[library['num_threads'] for library in threadpoolctl.threadpool_info()]",
    ),
    "astropy units": (
        "units.imperial.enable()",
        "len(units.get_current_unit_registry().all_units)",
    ),
    "astropy science states": (
        "iers.earth_orientation_table.set(iers.IERS_B.open())",
        "type(iers.earth_orientation_table._value).__name__",
    ),
    "astropy configuration": ("iers.conf.remote_timeout = 0.001", "iers.conf.remote_timeout"),
    "context of log records": (
        "ButlerMDC.MDC('LABEL', 'left:behind')",
        "dict(logging.makeLogRecord({}).MDC)",
    ),
    "matplotlib parameters": (
        "matplotlib.rcParams['lines.linewidth'] = 9",
        "matplotlib.rcParams['lines.linewidth']",
    ),
    "matplotlib figures": ("pyplot.figure()", "pyplot.get_fignums()"),
    "numpy.ndarray": ("numpy.ndarray = numpy.zeros(3)", "str(numpy.ndarray)"),
    "hooks": ("sys.excepthook = numpy.zeros(3)", "str(type(sys.excepthook))"),
}
"""By name of the part: what leaves it, and an expression that reads it."""

RESTORE_LIBRARIES = """
import json, logging, sys
import matplotlib, numpy, pandas, pyarrow, threadpoolctl
from astropy import units
from astropy.units import imperial
from astropy.utils import iers
from lsst.daf.butler.logging import ButlerMDC
from matplotlib import pyplot
from ppdaemon.worker.leftovers import Leftovers
ButlerMDC.add_mdc_log_record_factory()
leftovers, found = Leftovers(), {}
for name, (leave, read) in json.loads(sys.argv[1]).items():
    before = eval(read)
    exec(leave)
    left = eval(read)
    found[name] = before, left, *leftovers.restore(), eval(read)
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def found_in_libraries():
    """By name: the state before and with the leftover, what was restored and remains, the state after."""
    command = [sys.executable, "-c", RESTORE_LIBRARIES, json.dumps(LIBRARIES)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_state_of_libraries_is_restored(found_in_libraries, name):
    before, left, restored, remaining, after = found_in_libraries[name]
    assert left != before
    assert after == before
    assert (restored, remaining) == ([name], [])


def ended_child(*lines):
    """Run lines with a `Leftovers` in another process; return what the last one, an expression, gives.

    It ends as a worker does: at an orderly end, threads of Arrow abort a process now and then.
    """
    result = f"os.write(1, json.dumps({lines[-1]}).encode())"
    head = ("import json, os, sys", "from ppdaemon.worker.leftovers import Leftovers")
    code = "\n".join((*head, *lines[:-1], result, "os._exit(0)"))
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_a_stream_that_a_task_has_closed_costs_the_worker():
    assert ended_child("leftovers = Leftovers()", "sys.stderr.close()", "leftovers.restore()") == [
        [],
        ["standard streams"],
    ]


@pytest.mark.parametrize(
    "replace",
    [
        "random.seed = lambda *_: 1 / 0",
        "threading.enumerate = None",
        "os.waitid = None",
        "sys._current_frames = None; threading.Thread(target=threading.Event().wait, daemon=True).start()",
    ],
)
def test_a_restore_that_fails_costs_the_worker_and_nothing_else(replace):
    _, remaining = ended_child(
        "import random, threading",
        "leftovers = Leftovers()",
        replace,
        "leftovers.restore()",
    )
    assert len(remaining) == (0 if "random" in replace else 1)


def test_signals_are_no_longer_written_to_a_descriptor():
    assert (
        ended_child(
            "import signal",
            "leftovers = Leftovers()",
            "reading, writing = os.pipe()",
            "os.set_blocking(writing, False)",
            "signal.set_wakeup_fd(writing)",
            "leftovers.restore()",
            "signal.set_wakeup_fd(-1)",
        )
        == -1
    )


def test_a_dump_of_tracebacks_that_ends_the_process_is_canceled():
    assert (
        ended_child(
            "import faulthandler, time",
            "leftovers = Leftovers()",
            "faulthandler.dump_traceback_later(0.5, exit=True)",
            "leftovers.restore()",
            "time.sleep(1)",
            "'still here'",
        )
        == "still here"
    )


IMPORTED = """
import logging, os, sys, warnings
import ppdaemon.timescales
os.environ["SET_BY_IMPORT"] = "1"
sys.path.append("/of/import")
warnings.filterwarnings("ignore", message="of import")
logging.getLogger("of.import").setLevel(logging.ERROR)
ppdaemon.timescales.TAI_MINUS_UTC_S = 39
import nested_by_test
"""


def test_what_an_import_changes_stays_and_what_tasks_change_does_not(tmp_path):
    (tmp_path / "imported_by_test.py").write_text(IMPORTED)
    (tmp_path / "nested_by_test.py").write_text("import os\nos.environ['SET_BY_NESTED'] = '1'\n")
    assert ended_child(
        "import logging, warnings, ppdaemon.timescales",
        "from ppdaemon.worker.imports import observed_imports",
        f"sys.path.append({str(tmp_path)!r})",
        "leftovers = Leftovers(['ppdaemon'])",
        "with observed_imports(leftovers.around):",
        "    import imported_by_test",
        "    of_import = leftovers.restore()",
        "    import matplotlib",
        "    matplotlib.rcParams['lines.linewidth'] = 9",
        "    os.environ['SET_BY_NESTED'] = '2'",
        "    ppdaemon.timescales.TAI_MINUS_UTC_S = 40",
        "of_task = leftovers.restore()",
        "names = ('SET_BY_IMPORT', 'SET_BY_NESTED')",
        "[of_import, sorted(of_task[0]), of_task[1], [os.environ[name] for name in names], sys.path[-1],"
        " logging.getLogger('of.import').level, ppdaemon.timescales.TAI_MINUS_UTC_S]",
    ) == [
        [[], []],
        ["environment", "matplotlib parameters", "ppdaemon.timescales.TAI_MINUS_UTC_S"],
        [],
        ["1", "1"],
        "/of/import",
        40,
        39,
    ]


def test_what_a_task_has_changed_before_an_import_is_restored(tmp_path):
    (tmp_path / "imported_by_test.py").write_text(IMPORTED)
    (tmp_path / "nested_by_test.py").write_text("")
    assert (
        ended_child(
            "from ppdaemon.worker.imports import observed_imports",
            f"sys.path.append({str(tmp_path)!r})",
            "leftovers = Leftovers()",
            "with observed_imports(leftovers.around):",
            "    os.environ['SET_BY_TASK'] = '1'",
            "    import imported_by_test",
            "leftovers.restore()",
            "'SET_BY_TASK' in os.environ",
        )
        is False
    )


def test_usual_work_with_libraries_is_no_leftover(tmp_path):
    assert ended_child(
        "import multiprocessing, tempfile, warnings",
        "from pathlib import Path",
        "import numpy, pandas, pyarrow, lsst.pipe.base",
        "from astropy import units",
        "from astropy.table import QTable",
        "from astropy.time import Time",
        "from astropy.utils import iers",
        "from ppdaemon.worker.leftovers import ScratchFolder",
        f"scratch = ScratchFolder(Path({str(tmp_path)!r}) / 'scratch')",
        "scratch.use_for_temporary_files()",
        "scratch.enter()",
        "leftovers = Leftovers()",
        "with iers.conf.set_temp('auto_download', False), warnings.catch_warnings(action='ignore'):",
        "    Time('2026-01-01T00:00:00').ut1",
        "with tempfile.TemporaryFile(), multiprocessing.Lock(), numpy.errstate(all='raise'):",
        "    table = QTable({'a': numpy.arange(3) * units.mag, 'b': ['x', 'yy', 'z']})",
        "for name in ('x.fits', 'x.ecsv', 'x.parquet'):",
        "    table.write(name)",
        "    QTable.read(name)",
        "leftovers.restore()",
    ) == [[], []]


def test_nothing_is_restored_where_nothing_was_changed():
    assert Leftovers().restore() == ([], [])


@pytest.fixture
def event():
    event = threading.Event()
    yield event
    event.set()


def sleep_until(event):
    while not event.is_set():
        time.sleep(0.01)


def test_a_thread_that_works_is_named(event):
    leftovers = Leftovers()
    thread = threading.Thread(target=sleep_until, args=(event,), name="downloads-1", daemon=True)
    thread.start()
    assert leftovers.restore() == ([], ["thread downloads-1"])
    leftovers = Leftovers(allowed_threads=["downloads-*"])
    assert leftovers.restore() == ([], [])


@pytest.mark.parametrize("daemon", [True, False])
def test_threads_of_before_and_idle_threads_are_no_leftovers(event, daemon):
    threading.Thread(target=sleep_until, args=(event,), daemon=True).start()
    leftovers = Leftovers()
    started = threading.Event()

    def monitor():
        started.set()
        event.wait()

    threading.Thread(target=monitor, daemon=daemon).start()
    started.wait(10)
    wait_until(lambda: leftovers.restore() == ([], []))


def test_a_thread_that_does_something_from_time_to_time_is_named(event):
    leftovers = Leftovers()

    def report():
        while not event.wait(60):
            leftovers.restore()

    threading.Thread(target=report, name="reports", daemon=True).start()
    wait_until(lambda: leftovers.restore() == ([], ["thread reports"]))


def test_the_monitor_of_a_progress_bar_is_no_leftover(event):
    """It looks at its bars every ten seconds."""
    leftovers = Leftovers()
    monitor = type("TMonitor", (threading.Thread,), {"__module__": "tqdm._monitor"})
    monitor(target=event.wait, args=(60,), daemon=True).start()
    wait_until(lambda: leftovers.restore() == ([], []))


def test_state_that_cannot_be_compared_costs_the_worker_and_raises_nothing(monkeypatch):
    values = iter([np.zeros(3), np.ones(3), np.ones(3)])
    part = Part("colors", lambda: {"colors": next(values)}, lambda before: None)
    monkeypatch.setattr(worker_leftovers, "INTERPRETER", (part,))
    assert Leftovers().restore() == ([], ["colors"])


def test_an_ordinary_temporary_file_is_no_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", os.environ.get("TMPDIR", "/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    scratch = ScratchFolder(tmp_path / "tmp")
    scratch.use_for_temporary_files()
    scratch.enter()
    leftovers = Leftovers()
    with tempfile.TemporaryFile():
        assert tempfile.gettempdir() == str(scratch.path)
    assert leftovers.restore() == ([], [])


def test_the_idle_threads_of_an_executor_are_no_leftovers():
    leftovers = Leftovers()
    with ThreadPoolExecutor(2) as executor:
        executor.submit(sum, (1, 2)).result()
        wait_until(lambda: leftovers.restore() == ([], []))


def test_a_timer_is_named(event):
    leftovers = Leftovers()
    timer = threading.Timer(600, event.set)
    timer.name = "upload"
    timer.start()
    assert leftovers.restore() == ([], ["thread upload"])
    timer.cancel()
    timer.join()
    assert leftovers.restore() == ([], [])


def test_a_process_that_a_task_has_left_is_named():
    leftovers = Leftovers()
    with subprocess.Popen(["sleep", "600"]) as child:
        wait_until(lambda: leftovers.restore() == ([], ["process sleep"]))
        child.kill()
    assert leftovers.restore() == ([], [])


def test_the_scratch_folder_is_emptied_and_entered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scratch = ScratchFolder(tmp_path / "tmp")
    scratch.enter()
    (scratch.path / "folder").mkdir()
    (scratch.path / "folder" / "file").touch()
    (scratch.path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    scratch.enter()
    assert list(scratch.path.iterdir()) == []
    assert scratch.path.samefile(".")
    assert tmp_path.exists()


def test_a_link_in_place_of_the_scratch_folder_is_removed_and_its_target_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "file").touch()
    scratch = ScratchFolder(tmp_path / "tmp")
    for replace in (lambda: scratch.path.symlink_to(tmp_path / "data"), scratch.path.touch):
        replace()
        scratch.enter()
        assert list(scratch.path.iterdir()) == []
        assert not scratch.path.is_symlink()
        scratch.path.rmdir()
    assert (tmp_path / "data" / "file").exists()


def test_folders_without_permissions_are_removed(socket_dir):
    # As another user, who must reach the folder: nothing is protected from root.
    socket_dir.chmod(0o777)
    assert (
        ended_child(
            "from pathlib import Path",
            "from ppdaemon.worker.leftovers import ScratchFolder",
            "if os.geteuid() == 0:",
            "    os.setuid(65534)",
            f"scratch = ScratchFolder(Path({str(socket_dir)!r}) / 'tmp')",
            "scratch.enter()",
            "(scratch.path / 'a' / 'b').mkdir(parents=True)",
            "(scratch.path / 'a' / 'b' / 'c').touch()",
            "for folder in ('a/b', 'a', '.'):",
            "    (scratch.path / folder).chmod(0)",
            "scratch.enter()",
            "os.listdir(scratch.path)",
        )
        == []
    )


def test_the_state_of_a_child_is_that_of_its_begin(monkeypatch):
    """Created before the fork: what the child sets up before its first visit stays."""
    leftovers = Leftovers(["ppdaemon"])
    monkeypatch.setattr("ppdaemon.testing.waiting.PAUSE_S", 0.02)
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    monkeypatch.setattr(sys, "argv", ["worker"])
    leftovers.begin()
    assert leftovers.restore() == ([], [])
    monkeypatch.setattr("ppdaemon.testing.waiting.PAUSE_S", 0.03)
    sys.argv.append("changed")
    assert leftovers.restore() == (["sys.argv", "ppdaemon.testing.waiting.PAUSE_S"], [])
    assert (sys.argv, os.environ["TMPDIR"]) == (["worker"], "/elsewhere")


def test_a_warning_that_a_task_made_an_error_is_none_while_its_streams_are_closed():
    """The streams of a task are closed without a user: Python says so by a warning."""
    script = (
        "import os, sys, warnings; from ppdaemon.worker.leftovers import Leftovers; kept = Leftovers([]);"
        " warnings.simplefilter('error'); sys.stdout = open(os.devnull, 'w');"
        " kept.restore(); print('restored')"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("restored\n", "")
