# SPDX-License-Identifier: BSD-3-Clause
"""When a worker restores its process: after code of tasks, and only then."""

import os
import socket
import tempfile

import pytest

from ppdaemon.folders import NodeFolders
from ppdaemon.messages import FACTS, ORDERS, PACKET_LIMIT, Done, Pipelines, Prepare, Prepared, Process
from ppdaemon.states import ExitCode, Outcome
from ppdaemon.visit import read_next_visit
from ppdaemon.wire import decode, encode
from ppdaemon.worker.channel import Channel
from ppdaemon.worker.leftovers import Leftovers, ScratchFolder
from ppdaemon.worker.main import VisitLoop

VISIT = read_next_visit({"groupId": "g", "instrument": "LSSTCam"})
PREPARE = Prepare(visit_number=1, visit=VISIT, detector=0, pipelines=Pipelines(main=("p.yaml",)))


class UmaskWork:
    """Sets the umask while it prepares, and notes that of the process when it processes."""

    def __init__(self, *, ran_tasks):
        self.ran_tasks = ran_tasks

    def prepare(self, order):
        os.umask(0o077)
        return Prepared(ran_tasks=self.ran_tasks)

    def process(self, order):
        self.found = os.umask(0o077)
        return Done(outcome=Outcome.SUCCEEDED)

    def reset(self):
        self.after = os.umask(0o022)


@pytest.fixture
def umask(tmp_path, monkeypatch):
    """The umask of this process; a worker's working directory and temporary files are undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    before = os.umask(0o022)
    yield 0o022
    os.umask(before)


@pytest.mark.parametrize("ran_tasks", [True, False])
def test_a_process_is_restored_after_a_preparation_that_has_run_tasks(config, tmp_path, umask, ran_tasks):
    work = UmaskWork(ran_tasks=ran_tasks)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        for order in (PREPARE, Process(exposures=(1,))):
            here.send(encode(order))
        here.shutdown(socket.SHUT_WR)
        loop = VisitLoop(
            Channel(there, ORDERS),
            NodeFolders.of(config),
            ScratchFolder(tmp_path / "tmp"),
            Leftovers(),
            config,
        )
        assert loop.serve(work) == ExitCode.OK
        facts = [decode(here.recv(PACKET_LIMIT), FACTS, limit=PACKET_LIMIT) for _ in range(3)]
    assert [type(fact).__name__ for fact in facts] == ["Ready", "Prepared", "Done"]
    assert work.found == (umask if ran_tasks else 0o077)
    assert work.after == umask  # after the tasks themselves in any case
