# SPDX-License-Identifier: BSD-3-Clause
"""Exports while the exporter is killed, the database stops, and the datastore goes away: the content of
each dataset is compared.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from centrals import Central, make_few
from lsst.daf.butler import Butler
from postgres import running_server

from ppdaemon.clock import Clock
from ppdaemon.errors import Unavailable
from ppdaemon.middleware.export.checksums import checksum_of
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import read_manifest, replace_manifest

pytest_plugins = ("toyfixtures", "dbfixtures")

KILLS = 50
AWAY_S = 30.0
RETURN_S = 10.0
"""After the return of the database, the first export ends within this time."""


class Night:
    """Makes spools of many visits from a few, and knows the content of each dataset."""

    def __init__(self, folder: Path, patterns: list[Path]):
        self._folder = folder
        self._patterns = patterns
        self.checksums: dict[uuid.UUID, str] = {}
        self._places: set[tuple[str, str, str]] = set()
        """Type, run and data ID of each dataset; detectors of a visit have some in common."""

    def spools(self, number: int) -> list[Path]:
        """Return spools of a visit whose datasets have ids, runs and contents of their own."""
        return [self._spool(pattern, number) for pattern in self._patterns]

    def _spool(self, pattern: Path, number: int) -> Path:
        manifest = read_manifest(pattern)
        key = manifest.key.model_copy(update={"attempt": number + 10})
        spool = self._folder / key.folder
        shutil.copytree(pattern, spool)
        files = []
        for file in manifest.files:
            path = spool / file.name
            with path.open("a") as stream:
                stream.write(f"\n# visit {number}\n")
            checksum = checksum_of(path)
            refs = []
            for ref in file.refs:
                refs.append(ref._replace(id=uuid.uuid4(), run=f"{ref.run}-{number}"))
                assert ref.datasetType is not None
                assert ref.dataId is not None
                place = json.dumps(ref.dataId.dataId, sort_keys=True)
                self._places.add((ref.datasetType.name, str(refs[-1].run), place))
                self.checksums[refs[-1].id] = checksum
            size_bytes = path.stat().st_size
            files.append(file._replace(checksum=checksum, size_bytes=size_bytes, refs=tuple(refs)))
        chains = {chain: tuple(f"{run}-{number}" for run in runs) for chain, runs in manifest.chains.items()}
        changed = manifest.model_copy(update={"key": key, "files": tuple(files), "chains": chains})
        replace_manifest(spool, changed)
        return spool

    def check(self, central: Central) -> None:
        """Compare all files in the central repo with what was spooled, each dataset once."""
        with Butler.from_config(str(central.root)) as butler:
            refs = butler.get_many_datasets(list(self.checksums))
            found = {ref.id: uri.primaryURI for ref, uri in butler.get_many_uris(refs).items()}
        contents = {id_: checksum_of(Path(uri.ospath)) for id_, uri in found.items() if uri is not None}
        assert contents == {id_: self.checksums[id_] for id_ in found}
        assert len(found) == len(self._places)
        assert not list(central.root.glob("incoming-*"))


@pytest.fixture
def night(tmp_path: Path, spools: list[Path]) -> Night:
    """Return spools of detectors 1 and 2."""
    folder = tmp_path / "night"
    folder.mkdir()
    return Night(folder, [spools[0], spools[2]])


def exporter_of(central: Central, tmp_path: Path) -> CentralExporter:
    return CentralExporter(str(central.root), Clock(), "node1", tmp_path / "refused")


def export_in_a_child(central: Central, tmp_path: Path, spools: list[Path]) -> None:
    with closing(exporter_of(central, tmp_path)) as exporter:
        exporter.export(spools)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_exporter_that_is_killed_at_any_moment_loses_and_mixes_up_nothing(
    central: Central, night: Night, tmp_path: Path
) -> None:
    generator = random.Random(50)
    context = multiprocessing.get_context("fork")
    begin = time.monotonic()
    export_in_a_child(central, tmp_path, night.spools(0))
    usual_s = time.monotonic() - begin
    killed = 0
    for number in range(1, 4 * KILLS):
        spools = night.spools(number)
        child = context.Process(target=export_in_a_child, args=(central, tmp_path, spools))
        begin = time.monotonic()
        child.start()
        child.join(generator.uniform(0.1, 1.2) * usual_s)
        if child.is_alive():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            killed += 1
        else:  # the first one may have been slower, on a busy machine
            usual_s = min(usual_s, time.monotonic() - begin)
        child.join()
        with closing(exporter_of(central, tmp_path)) as exporter:
            exported = exporter.export(spools)
        # Those that were gone must have been exported: the central repo is compared below.
        assert sorted(exported.spools + exported.gone) == sorted(map(str, spools))
        assert exported.refused == ()
        if killed == KILLS:
            break
    assert killed == KILLS
    assert list((tmp_path / "night").iterdir()) == []
    night.check(central)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_database_that_stops_in_mid_night_delays_exports_only(tmp_path: Path, night: Night) -> None:
    with running_server() as server:
        central = make_few(tmp_path / "own-central", server)
        stop, stopped, paused = threading.Event(), threading.Event(), threading.Event()

        def stop_for_a_while() -> None:
            assert stop.wait(60)
            server.stop()
            stopped.set()

        thread = threading.Thread(target=stop_for_a_while)
        thread.start()
        failures, number = 0, 0
        with closing(exporter_of(central, tmp_path)) as exporter:
            while not failures:
                number += 1
                spools = night.spools(number)
                if number == 3:
                    stop.set()  # while it exports
                try:
                    exporter.export(spools)
                except Unavailable:
                    failures += 1
            assert stopped.wait(60)
            until = time.monotonic() + AWAY_S
            while time.monotonic() < until:
                with pytest.raises(Unavailable):
                    exporter.export(spools)
                failures += 1
                paused.wait(1.0)
            server.start()
            begin = time.monotonic()
            exporter.export(spools)
            assert time.monotonic() - begin < RETURN_S
        assert failures > 5
        night.check(central)
        assert not (tmp_path / "refused").exists()


MOUNTED = """
import subprocess, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {middleware!r}]
from lsst.daf.butler import Butler, Config
from ppdaemon.clock import Clock
from ppdaemon.errors import Unavailable
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.mark import mark_datastore

folder, spools = Path(sys.argv[1]), [Path(path) for path in sys.argv[2:]]
data, disk, other = folder / "data", folder / "disk", folder / "other"

def mount(source):
    subprocess.run(["mount", "--bind", source, data], check=True)

def unmount():
    subprocess.run(["umount", data], check=True)

def refuses(reason):
    try:
        exporter.export(spools[1:])
    except Unavailable as error:
        assert reason in str(error), error
    else:
        raise AssertionError("exported")
    assert all(spool.exists() for spool in spools[1:])

mount(disk)
exporter = CentralExporter(str(folder / "central"), Clock(), "node1", folder / "refused")
assert len(exporter.export(spools[:1]).spools) == 1
unmount()
refuses("has no mark")
assert list(data.iterdir()) == [], "nothing is written to the mount point"
mount(other)
refuses("has no mark")
assert list(data.iterdir()) == []
unmount()
mount(disk)
assert len(exporter.export(spools[1:]).spools) == len(spools) - 1
exporter.close()
"""


@pytest.fixture
def mounted(tmp_path: Path) -> Central:
    """Return a repo whose datastore will be mounted; skip where a test cannot mount."""
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], check=False).returncode:
        pytest.skip("this user cannot mount in a namespace of its own")
    for name in ("data", "disk", "other"):
        (tmp_path / name).mkdir()
    central = make_few(tmp_path / "central", None, datastore=tmp_path / "data")
    for path in (tmp_path / "data").iterdir():
        path.rename(tmp_path / "disk" / path.name)
    return central


@pytest.mark.slow
def test_a_datastore_whose_mount_goes_away_and_comes_back_gets_everything(
    mounted: Central, night: Night, tmp_path: Path
) -> None:
    spools = [*night.spools(1), *night.spools(2)]
    middleware = Path(__file__).parent
    script = MOUNTED.format(tests=str(middleware.parent), middleware=str(middleware))
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", script, tmp_path, *spools],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not any(spool.exists() for spool in spools)
    (tmp_path / "data").rmdir()
    (tmp_path / "disk").rename(tmp_path / "data")
    night.check(mounted)
