# SPDX-License-Identifier: BSD-3-Clause
"""Quanta that run at once: what the forked ones make is what the reference makes."""

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
from lsst.daf.butler.logging import ButlerMDC
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

TWO = {"processes": 2}


@pytest.fixture(autouse=True)
def _logging_of_a_node(caplog: pytest.LogCaptureFixture) -> Any:
    """Have the level of a node's processes, and records that carry their task."""
    caplog.set_level("INFO")
    ButlerMDC.add_mdc_log_record_factory()
    yield
    ButlerMDC.restore_log_record_factory()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ForkedCall]:
    """Return the children that were begun."""
    children: list[ForkedCall] = []
    start = ForkedCall.start

    def recorded(call: Callable[[], Any], fallback: Callable[[Any], Any]) -> ForkedCall:
        children.append(start(call, fallback))
        return children[-1]

    monkeypatch.setattr(ForkedCall, "start", recorded)
    return children


def test_two_snaps_at_once_make_what_the_reference_makes(rigs: MakeRig, started: list[ForkedCall]) -> None:
    compare_engines(rigs, ("separable", "direct"), main="Full", before="Known", snaps=(1, 2), settings=TWO)
    assert started


@pytest.mark.parametrize("action", ["fail", "partial", "full"])
def test_what_happens_in_a_child_is_told_as_if_it_had_happened_here(
    rigs: MakeRig, started: list[ForkedCall], action: str
) -> None:
    compare_engines(rigs, ("separable", "direct"), action=action, snaps=(1, 2), settings=TWO)
    assert started


def test_one_snap_and_one_process_need_no_child(rigs: MakeRig, started: list[ForkedCall]) -> None:
    process_visit(rigs, "direct", main="Full", before="Known", snaps=(1, 2))
    process_visit(rigs, "direct", main="Short", settings=TWO)
    assert not started


def test_what_cannot_be_taken_back_is_done_by_the_worker_itself(
    rigs: MakeRig, started: list[ForkedCall], tmp_path: Path
) -> None:
    settings = TWO | {"no_return": ["isr", "associate", "scripted", "zAside", "after"]}
    process_visit(rigs, "direct", snaps=(1, 2), settings=settings)
    assert not started


def test_a_child_that_ends_without_a_word_is_a_crash(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    start = ForkedCall.start
    monkeypatch.setattr(ForkedCall, "start", lambda call, fallback: start(lambda: os._exit(3), fallback))
    with pytest.raises(VisitFailed, match=r"task \w+: its process ended with exit status 3") as caught:
        process_visit(rigs, "direct", snaps=(1, 2), settings=TWO)
    assert (caught.value.outcome, caught.value.retriable) == (Outcome.CRASHED, True)


def test_without_another_process_all_is_done_here(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    result = process_visit(rigs, "direct", snaps=(1, 2), settings=TWO)
    assert (result.outcome, result.reason) == (Outcome.SUCCEEDED, "")
    assert "the worker runs it: Resource temporarily unavailable" in caplog.text


class Slate:
    """Writes bytes into files, and notes who does it."""

    def __init__(self, refuse: str = "", spared: int = 0):
        self._refuse, self._spared = refuse, spared

    def write(self, content: str, ref: Any, folder: Path, provenance: Any = None) -> LocatedFile:
        if content == self._refuse and os.getpid() != self._spared:
            raise OSError(28, "No space left on device")
        path = folder / f"{ref.id}.txt"
        path.write_text(f"{content} {os.getpid()}")
        return LocatedFile(path, "text", (ref,))


def some(sizes_bytes: dict[str, int]) -> Any:
    """Return datasets that look as large as told."""
    return [
        MemoryDataset(SimpleNamespace(id=uuid.uuid4()), content=name, size_bytes=size, to_export=True)  # type: ignore[arg-type]
        for name, size in sizes_bytes.items()
    ]


def written_by(files: list[LocatedFile]) -> dict[str, int]:
    """Return who wrote what."""
    return {name: int(pid) for name, pid in (file.path.read_text().split() for file in files)}


def test_large_outputs_are_written_at_once_and_small_ones_here(tmp_path: Path) -> None:
    outputs = some({"big": 9_000_000, "log": 2000, "bigger": 9_500_000, "huge": 90_000_000})
    (tmp_path / "spool").mkdir()
    files = write_outputs(outputs, tmp_path / "spool", tmp_path / "link", Slate(), 3)  # type: ignore[arg-type]
    assert [file.refs[0] for file in files] == [dataset.ref for dataset in outputs]
    wrote = written_by(files)
    assert wrote["log"] == os.getpid()
    assert len({wrote["log"], wrote["huge"], wrote["bigger"]}) == 3
    assert wrote["big"] == wrote["log"]
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("processes", [1, 4])
def test_what_one_process_can_do_is_done_by_one(tmp_path: Path, processes: int) -> None:
    outputs = some({"log": 2000, "big": 9_000_000} | ({"huge": 90_000_000} if processes == 1 else {}))
    files = write_outputs(outputs, tmp_path, tmp_path / "link", Slate(), processes)  # type: ignore[arg-type]
    assert set(written_by(files).values()) == {os.getpid()}


def test_what_another_process_cannot_write_is_written_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs, places = some({"big": 9_000_000, "huge": 90_000_000}), (tmp_path, tmp_path / "link")
    files = write_outputs(outputs, *places, Slate("big", spared=os.getpid()), 2)  # type: ignore[arg-type]
    assert set(written_by(files).values()) == {os.getpid()}
    assert "a process that wrote outputs ended with exit status 1" in caplog.text
    with pytest.raises(OSError, match="No space left"):
        write_outputs(outputs, *places, Slate("big"), 2)  # type: ignore[arg-type]


class Torn(Slate):
    """Is killed where it writes its second file, anywhere but in one process."""

    def write(self, content: str, ref: Any, folder: Path, provenance: Any = None) -> LocatedFile:
        if content == self._refuse and os.getpid() != self._spared:
            (folder / f"random{ref.id}.tmp.txt").write_text("the first half")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(content, ref, folder, provenance)


def test_nothing_is_left_of_a_process_that_was_killed_while_it_wrote(tmp_path: Path) -> None:
    outputs = some({"big": 9_000_000, "bigger": 9_100_000, "huge": 90_000_000})
    (spool := tmp_path / "spool").mkdir()
    writer: Any = Torn("big", spared=os.getpid())
    files = write_outputs(outputs, spool, tmp_path / "link", writer, 2)
    assert set(spool.iterdir()) == {file.path for file in files}
    assert set(written_by(files).values()) == {os.getpid()}


def unchanged(result: Any) -> Any:
    return result


def test_arrays_come_back_writable_and_share_what_they_shared() -> None:
    whole = np.arange(1e6)
    made = ForkedCall.start(
        lambda: {"whole": whole, "same": whole, "odd": b"x" * 3, "int": whole[:3] * 2}, unchanged
    ).result()
    assert np.array_equal(made["whole"], whole)
    made["same"][0] = -1.0
    assert made["whole"][0] == -1.0
    assert (made["odd"], list(made["int"])) == (b"xxx", [0.0, 2.0, 4.0])
    assert whole[0] == 0.0


def test_what_is_changed_here_is_not_changed_in_a_child_that_still_reads_it() -> None:
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


def test_a_small_array_does_not_keep_the_large_ones_that_came_with_it() -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:quantum")

    gc.collect()  # other tests have had arrays, too
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
def test_arrays_of_any_kind_come_back(array: Any) -> None:
    received = ForkedCall.start(lambda: array, unchanged).result()
    assert (received.dtype, received.shape, received.flags.writeable) == (array.dtype, array.shape, True)
    assert received.flags.f_contiguous or not array.flags.f_contiguous
    assert received.tolist() == array.tolist()


def test_what_others_may_not_change_comes_back_like_that() -> None:
    array = np.arange(50_000.0)
    array.flags.writeable = False
    assert not ForkedCall.start(lambda: array, unchanged).result().flags.writeable


class OneWay:
    """Can be pickled, but not read again."""

    def __init__(self, text: str):
        self.text = text

    def __reduce__(self) -> Any:
        return OneWay, ()


def test_what_cannot_be_read_again_comes_back_in_its_plain_form() -> None:
    assert ForkedCall.start(lambda: OneWay("some"), lambda it: it.text).result() == "some"


def refuse_in(pid: int) -> None:
    if os.getpid() == pid:
        raise TypeError("not here")


class NotHere:
    """Can be read in any process but its maker's parent."""

    def __reduce__(self) -> Any:
        return refuse_in, (os.getppid(),)


def test_what_nobody_wants_any_more_is_not_even_read() -> None:
    child = ForkedCall.start(NotHere, unchanged)
    assert ForkedCall.ended([child], wait=True) == [child]
    child.kill()
    with pytest.raises(ChildProcessError):
        os.waitpid(child._pid, 0)


def test_children_do_not_draw_the_same_random_numbers() -> None:
    np.random.random()  # its state is there now
    drawn = [ForkedCall.start(np.random.random, unchanged).result() for _ in range(2)]
    assert len({*drawn, np.random.random()}) == 3


def test_what_was_printed_before_is_not_printed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "log").open("w") as log:  # as a worker's output: nothing is written at once
        monkeypatch.setattr("sys.stdout", log)
        print("before")
        assert ForkedCall.start(lambda: print("in the child"), unchanged).result() is None
    assert (tmp_path / "log").read_text() == "before\nin the child\n"


def test_a_child_that_is_interrupted_at_its_very_end_does_not_go_on_as_its_parent() -> None:
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


def test_what_cannot_be_pickled_comes_back_in_its_plain_form() -> None:
    child = ForkedCall.start(lambda: (k for k in range(3)), list)
    assert child.result() == [0, 1, 2]


def test_an_image_comes_back_with_its_place_on_the_sky() -> None:
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
        (lambda: os._exit(0), "exit status 0"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGRTMIN + 6), "signal 40"),
        (lambda: 1 / 0, "exit status 1"),
    ],
)
def test_how_a_child_has_ended_is_told(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(DiedWithoutResult, match=text):
        ForkedCall.start(call, unchanged).result()


def test_a_child_that_cannot_be_watched_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        watched.append(pid)
        raise OSError(24, "Too many open files")

    watched: list[int] = []
    monkeypatch.setattr(os, "pidfd_open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        ForkedCall.start(signal.pause, unchanged)
    with pytest.raises(ProcessLookupError):
        os.kill(watched[0], 0)


def test_children_that_have_ended_are_told_from_those_that_run() -> None:
    slow, quick = ForkedCall.start(signal.pause, unchanged), ForkedCall.start(lambda: 1, unchanged)
    assert ForkedCall.ended([slow, quick], wait=True) == [quick]
    assert quick.result() == 1
    assert ForkedCall.ended([slow], wait=False) == []
    begun_s = time.monotonic()
    slow.kill()
    assert time.monotonic() - begun_s < 60
    with pytest.raises(ChildProcessError):
        os.waitpid(slow._pid, 0)


def test_a_child_leaves_the_database_connections_of_its_parent_alone(tmp_path: Path) -> None:
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
