# SPDX-License-Identifier: BSD-3-Clause
"""A durable SQLite file: opening, upgrading, transactions, and the thread that writes it."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from ppdaemon.errors import Refused, StateUnusable
from ppdaemon.sqlitefile import BATCH, ROOM, BatchWriter, Commit, SqliteFile
from ppdaemon.testing.waiting import wait_until

STEPS = (lambda db: db.executescript("CREATE TABLE t (n INTEGER PRIMARY KEY); CREATE TABLE other (n);"),)


class Numbers(SqliteFile):
    def __init__(self, path, steps=STEPS, first=1):
        super().__init__(path, "counter", steps, first=first, busy_s=0.01)

    def add(self, number):
        self._db.execute("INSERT INTO t VALUES (?)", (number,))
        return number

    def all(self):
        return [number for (number,) in self._db.execute("SELECT n FROM t ORDER BY rowid")]

    def version(self):
        return self._db.execute("PRAGMA user_version").fetchone()[0]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "numbers.sqlite"


@pytest.fixture
def file(path):
    with closing(Numbers(path)) as opened:
        yield opened


@pytest.fixture
def locked(path, file):
    """Another program that holds the lock."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


# --- opening ------------------------------------------------------------------


def test_the_file_is_written_ahead_and_synchronized(file):
    assert file._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert file._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_only_the_steps_that_are_missing_are_taken(path):
    Numbers(path).close()
    steps = (*STEPS, lambda db: db.execute("INSERT INTO t VALUES (7)"))
    for _ in range(2):
        with closing(Numbers(path, steps)) as file:
            assert (file.version(), file.all()) == (2, [7])


def test_a_step_that_fails_leaves_the_file_as_it_was(path):
    Numbers(path).close()

    def fail(db):
        db.execute("INSERT INTO t VALUES (7)")
        raise sqlite3.OperationalError("database or disk is full")

    with pytest.raises(StateUnusable, match="full"):
        Numbers(path, (*STEPS, lambda db: db.executescript("CREATE TABLE more (n);"), fail))
    with closing(Numbers(path)) as file:
        assert (file.version(), file.all()) == (1, [])


def test_versions_before_the_first_one_are_refused_and_new_files_begin_with_it(path, tmp_path):
    Numbers(path).close()
    Numbers(path, first=1).close()
    with pytest.raises(StateUnusable, match=r"older counter .*version 1, this one reads 5 and later.*move"):
        Numbers(path, first=5)
    new = tmp_path / "new.sqlite"
    with closing(Numbers(new, first=5)) as file:
        assert file.version() == 5
    insert = (*STEPS, lambda db: db.execute("INSERT INTO t VALUES (7)"))
    with closing(Numbers(new, insert, first=5)) as file:
        assert (file.version(), file.all()) == (6, [7])


def test_a_file_of_a_newer_program_is_refused_with_what_can_be_done(path):
    Numbers(path, (*STEPS, lambda db: None)).close()
    with pytest.raises(StateUnusable, match=r"newer counter .*version 2, this one has 1.*: install that"):
        Numbers(path)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_a_damaged_file_is_moved_aside_with_its_companions(path):
    with closing(Numbers(path)) as file:
        with file.transaction():
            for number in range(20_000):
                file.add(number)
        pages = path.with_name("numbers.sqlite-wal").read_bytes()
    data = path.read_bytes()
    path.write_bytes(data[:8192] + b"\xa5" * (len(data) - 8192))
    path.with_name("numbers.sqlite-wal").write_bytes(b"\0" * 32 + pages[32:])  # none that SQLite would replay
    with closing(Numbers(path)) as file:
        assert file.all() == []
        assert file.moved_aside.read_bytes()[8192:] == b"\xa5" * (len(data) - 8192)
        kept_wal = file.moved_aside.with_name(f"{file.moved_aside.name}-wal")
        assert kept_wal.read_bytes()[32:] == pages[32:]


def test_a_file_that_is_no_database_is_moved_aside(path, caplog):
    path.write_bytes(b"no database" * 1000)
    with closing(Numbers(path)) as file:
        assert file.moved_aside.read_bytes() == b"no database" * 1000
        assert file.all() == []
    assert "is corrupt" in caplog.text


def test_a_locked_file_is_not_corrupt(path, locked):
    steps = (*STEPS, lambda db: None)
    with pytest.raises(StateUnusable, match="locked"):
        Numbers(path, steps)
    assert not list(path.parent.glob("*corrupt*"))


def test_a_file_that_cannot_be_made_is_not_corrupt(path):
    with pytest.raises(StateUnusable, match="No such file"):
        Numbers(path.parent / "missing" / "numbers.sqlite")


# --- transactions -------------------------------------------------------------


def add_both(file, first, second):
    with file.transaction():
        file.add(first)
        file.add(second)


def test_a_transaction_is_kept_completely_or_not_at_all(file):
    with file.transaction():
        file.add(1)
    with pytest.raises(sqlite3.IntegrityError):
        add_both(file, 2, 1)
    assert file.all() == [1]


def test_a_part_of_a_transaction_is_undone_alone(file):
    with file.transaction():
        file.add(1)
        with pytest.raises(sqlite3.IntegrityError):
            add_both(file, 2, 1)
        with file.transaction():
            file.add(3)
    assert file.all() == [1, 3]


def test_a_transaction_that_the_database_has_ended_hides_no_error(file):
    def fill():
        with file.transaction(), file.transaction():
            file._db.execute("ROLLBACK")  # as a full disk does
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fill()
    with file.transaction():
        file.add(1)
    assert file.all() == [1]


# --- the thread ---------------------------------------------------------------


@asynccontextmanager
async def writing(file, complaints=None, *, start=True, batch_s=0.0):
    complain = (complaints if complaints is not None else []).append
    writer = BatchWriter(file, "list", complain, retry_s=0.01, batch_s=batch_s)
    run = asyncio.create_task(writer.run()) if start else None
    try:
        yield writer
    finally:
        run = run or asyncio.create_task(writer.run())
        writer.finish()
        await run
        writer._thread.shutdown()


async def until(condition):
    await asyncio.to_thread(wait_until, condition, 20.0)


def adding(number, log, *, may_fail=False):
    """Add a number; log it when it is written, or why it is not."""
    failed = (lambda error: log.append((number, type(error)))) if may_fail else None
    return Commit(lambda file: file.add(number), log.append, failed)


async def test_effects_follow_in_the_order_of_their_commits(file):
    log = []
    async with writing(file) as writer:
        writer.put(Commit(None, lambda _: log.append("at once")))
        assert log == ["at once"]
        for number in range(3 * BATCH):
            writer.put(adding(number, log))
            writer.put(Commit(None, lambda _, number=number: log.append(-number)))
    assert writer.backlog == 0
    assert log == ["at once", *(n for number in range(3 * BATCH) for n in (number, -number))]
    assert file.all() == list(range(3 * BATCH))


async def test_an_effect_without_work_that_follows_a_commit_needs_no_transaction(file):
    statements, log = [], []
    async with writing(file) as writer:

        def done(_):
            writer.put(Commit(None, lambda _: log.append("follows")))
            assert log == []

        file._db.set_trace_callback(statements.append)
        writer.put(Commit(lambda file: file.add(1), done))
    assert log == ["follows"]
    assert statements.count("BEGIN IMMEDIATE") == 1


async def test_what_has_gathered_is_one_transaction(file):
    statements = []
    file._db.set_trace_callback(statements.append)
    async with writing(file) as writer:
        for number in range(BATCH):
            writer.put(adding(number, []))
    assert statements.count("COMMIT") == 1


async def test_what_comes_in_a_burst_gathers_after_a_transaction(file, monkeypatch):
    log, statements, pause_s, sleep = [], [], 7.0, asyncio.sleep
    file._db.set_trace_callback(statements.append)
    over = asyncio.Event()
    monkeypatch.setattr(asyncio, "sleep", lambda s: over.wait() if s == pause_s else sleep(s))
    async with writing(file, batch_s=pause_s) as writer:
        writer.put(adding(0, log))
        await until(lambda: log == [0])
        for number in (1, 2, 3):
            writer.put(adding(number, log))
            await sleep(0.01)  # without the pause each would be a separate transaction
        assert statements.count("COMMIT") == 1
        over.set()
        await until(lambda: log == [0, 1, 2, 3])
    assert statements.count("COMMIT") == 2


async def test_an_effect_sees_its_change_on_disk(file, path):
    seen = []

    def check(_):
        with closing(sqlite3.connect(path)) as other:
            seen.extend(other.execute("SELECT n FROM t").fetchall())

    async with writing(file) as writer:
        writer.put(Commit(lambda file: file.add(5), check))
    assert seen == [(5,)]


async def test_one_that_fails_by_itself_does_not_fail_the_others(file):
    log, complaints = [], []
    async with writing(file, complaints) as writer:
        writer.put(adding(1, log, may_fail=True))
        writer.put(
            Commit(lambda file: add_both(file, 8, 1), log.append, lambda error: log.append(type(error)))
        )
        writer.put(adding(1, log, may_fail=True))
        writer.put(adding(2, log))
    assert log == [1, sqlite3.IntegrityError, (1, sqlite3.IntegrityError), 2]
    assert file.all() == [1, 2]
    assert complaints == []


def test_an_error_in_one_that_must_not_fail_ends_the_run_and_nothing_is_done(file):
    log = []

    async def run():
        writer = BatchWriter(file, "list", log.append)
        writer.put(adding(1, log))
        writer.put(adding(1, log))
        try:
            await asyncio.wait_for(writer.run(), 20.0)
        finally:
            writer._thread.shutdown()

    with pytest.raises(sqlite3.IntegrityError):
        asyncio.run(run())
    assert (log, file.all()) == ([], [])


async def test_an_error_in_an_effect_costs_no_other_effect(file, caplog):
    log = []
    async with writing(file) as writer:
        writer.put(Commit(lambda file: file.add(1), lambda _: 1 // 0))
        writer.put(adding(2, log))
    assert log == [2]
    assert "ZeroDivisionError" in caplog.text


async def test_while_the_file_is_locked_what_must_be_done_waits_in_its_order(file, locked):
    log, complaints = [], []
    async with writing(file, complaints) as writer:
        writer.put(adding(1, log))
        writer.put(adding(2, log, may_fail=True))
        writer.put(Commit(None, lambda _: log.append("after 1")))
        writer.put(adding(3, log))
        await until(lambda: len(complaints) > 1)
        writer.put(adding(4, log))
        assert writer.problem == complaints[0] == "the list cannot be written: database is locked"
        assert log == [(2, Refused)]
        locked.execute("ROLLBACK")
        await until(lambda: not writer.backlog)
        assert writer.problem == ""
    assert log == [(2, Refused), 1, "after 1", 3, 4]
    assert file.all() == [1, 3, 4]


async def test_what_may_fail_does_so_at_once_however_much_is_before_it(file, locked):
    log = []
    async with writing(file) as writer:
        for number in range(2 * BATCH):
            writer.put(adding(number, log))
        writer.put(adding(-1, log, may_fail=True))
        await until(lambda: log)
        assert log == [(-1, Refused)]
        locked.execute("ROLLBACK")
    assert file.all() == list(range(2 * BATCH))


async def test_when_the_database_ends_the_transaction_all_of_it_is_tried_again(file):
    log, complaints, tries = [], [], []

    def full_at_first(file):
        tries.append(1)
        if len(tries) == 1:
            file._db.execute("ROLLBACK")
            raise sqlite3.OperationalError("database or disk is full")
        return file.add(2)

    async with writing(file, complaints) as writer:
        writer.put(adding(1, log))
        writer.put(Commit(full_at_first, log.append))
        writer.put(adding(3, log))
        await until(lambda: not writer.backlog)
    assert complaints == ["the list cannot be written: database or disk is full"]
    assert log == file.all() == [1, 2, 3]


async def test_calls_come_after_what_was_put_before_and_raise_what_they_raise(file):
    log = []
    async with writing(file) as writer:
        writer.put(adding(1, log))
        assert await writer.call(Numbers.all) == [1]
        assert log == [1]
        with pytest.raises(sqlite3.IntegrityError):
            await writer.call(lambda file: file.add(1))


async def test_a_call_reads_while_another_program_holds_the_lock(file, locked):
    async with writing(file) as writer:
        assert await writer.call(Numbers.all) == []


async def test_a_file_that_cannot_be_written_can_be_read(file, locked):
    log = []
    async with writing(file) as writer:
        writer.put(adding(1, log))
        await until(lambda: writer.problem)
        assert await asyncio.wait_for(writer.call(Numbers.all), 20.0) == []
        assert writer.problem
        locked.execute("ROLLBACK")
    assert log == [1]


def test_a_caller_that_was_canceled_affects_no_other(file, caplog):
    async def run():
        async with writing(file, start=False) as writer:
            calls = [asyncio.create_task(writer.call(work)) for work in (Numbers.all, lambda file: 1 // 0)]
            await until(lambda: writer.backlog == 2)
            for call in calls:
                call.cancel()

    asyncio.run(run())
    assert caplog.text == ""


async def test_callers_wait_for_room(file):
    async with writing(file, start=False) as writer:
        for number in range(ROOM):
            await asyncio.wait_for(writer.wait_for_room(), 20.0)
            writer.put(adding(number, []))
        waiting = asyncio.create_task(writer.wait_for_room())
        await asyncio.sleep(0)
        assert not waiting.done()
        run = asyncio.create_task(writer.run())
        await asyncio.wait_for(waiting, 20.0)
        run.cancel()
        await asyncio.wait([run])


async def test_close_finishes_what_is_queued(path):
    log = []
    writer = BatchWriter(Numbers(path), "list", log.append)
    for number in range(3 * BATCH):
        writer.put(adding(number, log))
    writer.finish()
    await writer.run()
    writer.close()
    with closing(Numbers(path)) as file:
        assert file.all() == log == list(range(3 * BATCH))


async def test_the_end_does_not_wait_for_a_locked_file(file, locked, caplog):
    log = []
    async with asyncio.timeout(20.0), writing(file) as writer:
        writer.put(adding(1, log))
        writer.put(Commit(None, lambda _: log.append("never")))
        writer.put(adding(2, log, may_fail=True))
    assert log == [(2, Refused)]
    assert "2 changes could not be written" in caplog.text


def test_what_was_followed_by_its_effect_survives_a_kill(path):
    """A crash between two transactions, or within one."""
    script = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        from test_sqlitefile import BatchWriter, Commit, Numbers

        async def run():
            writer = BatchWriter(Numbers(Path(sys.argv[1])), "list", print)

            def put(number):
                writer.put(Commit(lambda file: file.add(number), lambda _: written(number)))

            def written(number):
                print(number, flush=True)
                put(number + 30)

            for number in range(30):
                put(number)
            await writer.run()

        asyncio.run(run())
    """)
    done = path.with_name("done")
    with done.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)],
            stdout=stream,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=Path(__file__).parent,
        )
    wait_until(lambda: done.read_text().count("\n") > 500, 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    acknowledged = [int(line) for line in done.read_text().split("\n")[:-1]]
    with closing(Numbers(path)) as file:
        kept = file.all()
    assert acknowledged == list(range(len(acknowledged)))
    assert kept == list(range(len(kept)))
    assert len(kept) >= len(acknowledged)
