# SPDX-License-Identifier: BSD-3-Clause
"""Quanta in forked processes have the outputs of ``separable``."""

import gc
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import astropy.units as u
import numpy as np
import pytest
import sqlalchemy
from enginecompare import compare_engines, process_visit
from toycam import MakeRig

from ppdaemon.demo.geometry import detector_wcs
from ppdaemon.demo.tasks.planes import make_image, sky_projection
from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.direct.files import MemoryDataset
from ppdaemon.middleware.direct.forked import DiedWithoutResult, ForkedCall
from ppdaemon.middleware.direct.writing import write_outputs
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures",)
pytestmark = pytest.mark.usefixtures("logging_of_a_node")

TWO = {"processes": 2}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ForkedCall]:
    """Return the children that were started."""
    children: list[ForkedCall] = []
    start = ForkedCall.start

    def recorded(call: Callable[[], Any], fallback: Callable[[Any], Any]) -> ForkedCall:
        children.append(start(call, fallback))
        return children[-1]

    monkeypatch.setattr(ForkedCall, "start", recorded)
    return children


@pytest.mark.slow
def test_two_snaps_in_two_processes_have_the_outputs_of_separable(
    rigs: MakeRig, started: list[ForkedCall]
) -> None:
    compare_engines(rigs, ("separable", "direct"), main="Full", before="Known", snaps=(1, 2), settings=TWO)
    assert started


@pytest.mark.parametrize(
    "action", ["fail", *(pytest.param(name, marks=pytest.mark.slow) for name in ("partial", "full"))]
)
def test_failures_in_a_child_are_reported_like_those_in_the_worker(
    rigs: MakeRig, started: list[ForkedCall], action: str
) -> None:
    compare_engines(rigs, ("separable", "direct"), action=action, snaps=(1, 2), settings=TWO)
    assert started


@pytest.mark.slow
def test_one_snap_and_one_process_need_no_child(rigs: MakeRig, started: list[ForkedCall]) -> None:
    process_visit(rigs, "direct", main="Full", before="Known", snaps=(1, 2))
    process_visit(rigs, "direct", main="Short", settings=TWO)
    assert not started


def test_tasks_with_a_point_of_no_return_run_in_the_worker(
    rigs: MakeRig, started: list[ForkedCall], tmp_path: Path
) -> None:
    settings = TWO | {"no_return": ["isr", "associate", "scripted", "zAside", "after"]}
    process_visit(rigs, "direct", snaps=(1, 2), settings=settings)
    assert not started


def test_a_child_that_exits_without_a_result_is_a_crash(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ForkedCall.start
    monkeypatch.setattr(ForkedCall, "start", lambda call, fallback: start(lambda: os._exit(3), fallback))
    with pytest.raises(VisitFailed, match=r"task \w+: its process ended with status 3") as caught:
        process_visit(rigs, "direct", snaps=(1, 2), settings=TWO)
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.CRASHED, True)


def test_all_quanta_run_in_the_worker_if_no_process_can_be_forked(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    result = process_visit(rigs, "direct", snaps=(1, 2), settings=TWO)
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "")
    assert "the worker runs it: Resource temporarily unavailable" in caplog.text


class PidWriter:
    """Writes its process id into each file."""

    def __init__(self, refuse: str = "", spared: int = 0):
        self._refuse, self._spared = refuse, spared

    def write(self, content: str, ref: Any, folder: Path, provenance: Any = None) -> LocatedFile:
        if content == self._refuse and os.getpid() != self._spared:
            raise OSError(28, "No space left on device")
        path = folder / f"{ref.id}.txt"
        path.write_text(f"{content} {os.getpid()}")
        return LocatedFile(path, "text", (ref,))


def some(sizes_bytes: dict[str, int]) -> Any:
    """Return datasets with these sizes."""
    return [
        MemoryDataset(SimpleNamespace(id=uuid.uuid4()), content=name, size_bytes=size, to_export=True)  # type: ignore[arg-type]
        for name, size in sizes_bytes.items()
    ]


def written_by(files: list[LocatedFile]) -> dict[str, int]:
    """Return the process that wrote each dataset."""
    return {name: int(pid) for name, pid in (file.path.read_text().split() for file in files)}


def test_large_outputs_are_written_by_children_and_small_ones_by_the_worker(tmp_path: Path) -> None:
    outputs = some({"big": 9_000_000, "log": 2000, "bigger": 9_500_000, "huge": 90_000_000})
    (tmp_path / "spool").mkdir()
    files, _ = write_outputs(outputs, tmp_path / "spool", tmp_path / "link", PidWriter(), 3)  # type: ignore[arg-type]
    assert [file.refs[0] for file in files] == [dataset.ref for dataset in outputs]
    wrote = written_by(files)
    assert wrote["log"] == os.getpid()
    assert len({wrote["log"], wrote["huge"], wrote["bigger"]}) == 3
    assert wrote["big"] == wrote["log"]
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("processes", [1, 4])
def test_outputs_are_written_by_one_process_if_that_is_enough(tmp_path: Path, processes: int) -> None:
    outputs = some({"log": 2000, "big": 9_000_000} | ({"huge": 90_000_000} if processes == 1 else {}))
    files, _ = write_outputs(outputs, tmp_path, tmp_path / "link", PidWriter(), processes)  # type: ignore[arg-type]
    assert set(written_by(files).values()) == {os.getpid()}


def test_outputs_that_a_child_cannot_write_are_written_by_the_worker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs, places = some({"big": 9_000_000, "huge": 90_000_000}), (tmp_path, tmp_path / "link")
    files, _ = write_outputs(outputs, *places, PidWriter("big", spared=os.getpid()), 2)  # type: ignore[arg-type]
    assert set(written_by(files).values()) == {os.getpid()}
    assert "a process that wrote outputs ended with status 1" in caplog.text
    with pytest.raises(OSError, match="No space left"):
        write_outputs(outputs, *places, PidWriter("big"), 2)  # type: ignore[arg-type]


class KilledWriter(PidWriter):
    """Is killed while it writes a file, in any process but one."""

    def write(self, content: str, ref: Any, folder: Path, provenance: Any = None) -> LocatedFile:
        if content == self._refuse and os.getpid() != self._spared:
            (folder / f"random{ref.id}.tmp.txt").write_text("the first half")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(content, ref, folder, provenance)


def test_files_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    outputs = some({"big": 9_000_000, "bigger": 9_100_000, "huge": 90_000_000})
    (spool := tmp_path / "spool").mkdir()
    writer: Any = KilledWriter("big", spared=os.getpid())
    files, _ = write_outputs(outputs, spool, tmp_path / "link", writer, 2)
    assert set(spool.iterdir()) == {file.path for file in files}
    assert set(written_by(files).values()) == {os.getpid()}


def unchanged(result: Any) -> Any:
    return result


def test_arrays_are_returned_writable_and_share_memory_as_before() -> None:
    whole = np.arange(1e6)
    made = ForkedCall.start(
        lambda: {"whole": whole, "same": whole, "odd": b"x" * 3, "int": whole[:3] * 2}, unchanged
    ).result()
    assert np.array_equal(made["whole"], whole)
    made["same"][0] = -1.0
    assert made["whole"][0] == -1.0
    assert (made["odd"], list(made["int"])) == (b"xxx", [0.0, 2.0, 4.0])
    assert whole[0] == 0.0


def test_a_running_child_does_not_see_changes_of_the_parent() -> None:
    array = ForkedCall.start(lambda: np.zeros(100_000), unchanged).result()
    read_end, write_end = os.pipe()

    def sum_later() -> float:
        os.read(read_end, 1)
        return float(array.sum())

    reader = ForkedCall.start(sum_later, unchanged)
    array += 1.0
    os.write(write_end, b"!")
    os.close(read_end)
    os.close(write_end)
    assert reader.result() == 0.0


def test_a_small_array_does_not_keep_the_mapping_of_large_ones() -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:quantum")

    gc.collect()  # release arrays of other tests
    before = mappings()
    made = ForkedCall.start(
        lambda: {"image": np.ones(1_000_000), "summary": np.arange(3.0)}, unchanged
    ).result()
    assert mappings() == before + 1
    del made["image"]
    assert mappings() == before
    made["summary"][0] = 7.0
    assert list(made["summary"]) == [7.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)),
        np.asfortranarray(np.arange(60_000.0).reshape(200, 300)),
        np.arange(50_000.0)[::2],
        np.zeros(20_000, dtype=[("flag", "i1"), ("flux", ">f8")]),
        np.ma.masked_array(np.arange(4.0), mask=[False, True, False, True]),
        np.array([{"any": "object"}, None]),
    ],
    ids=["empty", "fortran", "strided", "packed", "masked", "objects"],
)
def test_arrays_of_any_kind_are_returned(array: Any) -> None:
    received = ForkedCall.start(lambda: array, unchanged).result()
    assert (received.dtype, received.shape, received.flags.writeable) == (array.dtype, array.shape, True)
    assert received.flags.f_contiguous or not array.flags.f_contiguous
    assert received.tolist() == array.tolist()


def test_read_only_arrays_are_returned_read_only() -> None:
    array = np.arange(50_000.0)
    array.flags.writeable = False
    assert not ForkedCall.start(lambda: array, unchanged).result().flags.writeable


class OneWay:
    """Can be pickled, but not unpickled."""

    def __init__(self, text: str):
        self.text = text

    def __reduce__(self) -> Any:
        return OneWay, ()


def test_a_result_that_cannot_be_unpickled_is_returned_in_its_fallback_form() -> None:
    assert ForkedCall.start(lambda: OneWay("some"), lambda it: it.text).result() == "some"


def refuse_in(pid: int) -> None:
    if os.getpid() == pid:
        raise TypeError("not here")


class NotHere:
    """Can be unpickled in any process but the parent of the one that pickled it."""

    def __reduce__(self) -> Any:
        return refuse_in, (os.getppid(),)


def test_the_result_of_a_killed_call_is_not_read() -> None:
    child = ForkedCall.start(NotHere, unchanged)
    assert ForkedCall.ended([child], wait=True) == [child]
    child.kill()
    with pytest.raises(ChildProcessError):
        os.waitpid(child._pid, 0)


def test_children_draw_different_random_numbers() -> None:
    np.random.random()  # initializes its state
    drawn = [ForkedCall.start(np.random.random, unchanged).result() for _ in range(2)]
    assert len({*drawn, np.random.random()}) == 3


def test_text_printed_before_the_fork_is_printed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "log").open("w") as log:  # buffered, as the output of a worker
        monkeypatch.setattr("sys.stdout", log)
        print("before")
        assert ForkedCall.start(lambda: print("in the child"), unchanged).result() is None
    assert (tmp_path / "log").read_text() == "before\nin the child\n"


def test_a_child_that_is_interrupted_at_its_end_exits() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def call() -> int:
        sys.stdout = SimpleNamespace(flush=interrupt)  # type: ignore[assignment]
        return 1

    parent = os.getpid()
    try:
        child = ForkedCall.start(call, unchanged)
    finally:
        if os.getpid() != parent:
            os._exit(77)
    assert child.result() == 1


def test_a_result_that_cannot_be_pickled_is_returned_in_its_fallback_form() -> None:
    child = ForkedCall.start(lambda: (k for k in range(3)), list)
    assert child.result() == [0, 1, 2]


def test_an_image_is_returned_with_its_sky_projection() -> None:
    projection = sky_projection(detector_wcs(150.0, 2.0, 30.0, 4))
    image = make_image(np.ones((50, 60)), np.ones((50, 60)), {}, u.nJy, projection=projection)
    received = ForkedCall.start(lambda: image, lambda image: "through files").result()
    assert np.array_equal(received.image.array, image.image.array)
    assert received.sky_projection == image.sky_projection
    assert received.unit == u.nJy
    received.image.array[0, 0] = 2.0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: os._exit(0), "ended with status 0"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"ended by signal 9 \(SIGKILL\)"),
        (lambda: os.kill(os.getpid(), signal.SIGRTMIN + 6), "ended by signal 40"),
        (lambda: 1 / 0, "ended with status 1"),
    ],
)
def test_the_exit_of_a_child_is_reported(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(DiedWithoutResult, match=text):
        ForkedCall.start(call, unchanged).result()


def test_a_child_without_a_pidfd_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        watched.append(pid)
        raise OSError(24, "Too many open files")

    watched: list[int] = []
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        ForkedCall.start(signal.pause, unchanged)
    with pytest.raises(ProcessLookupError):
        os.kill(watched[0], 0)


def test_ended_children_are_distinguished_from_running_ones() -> None:
    slow, quick = ForkedCall.start(signal.pause, unchanged), ForkedCall.start(lambda: 1, unchanged)
    assert ForkedCall.ended([slow, quick], wait=True) == [quick]
    assert quick.result() == 1
    assert ForkedCall.ended([slow], wait=False) == []
    begun_s = time.monotonic()
    slow.kill()
    assert time.monotonic() - begun_s < 60
    with pytest.raises(ChildProcessError):
        os.waitpid(slow._pid, 0)


def test_a_child_does_not_use_database_connections_of_its_parent(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path}/known.db")
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE known (id INTEGER)"))
    with engine.connect() as connection:
        before = id(connection.connection.dbapi_connection)

    def add() -> bool:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("INSERT INTO known VALUES (7)"))
            return id(connection.connection.dbapi_connection) == before

    assert ForkedCall.start(add, unchanged).result() is False
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT id FROM known")).scalar() == 7
        assert id(connection.connection.dbapi_connection) == before
    engine.dispose()
