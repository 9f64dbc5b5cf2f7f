# SPDX-License-Identifier: BSD-3-Clause
"""Reading raws: files that may have been replaced, and object stores."""

import errno
import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from lsst.resources import ResourcePath
from storeserver import Store, serving
from toycam import DAY, MakeRig, make_header, write_raw

from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage, VisitFailed
from ppdaemon.messages import Process, Raw
from ppdaemon.middleware.raws import ingest, rawfiles, remote
from ppdaemon.middleware.raws.rawfiles import RawFiles
from ppdaemon.raws.roots import escaped
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures",)

# lsst.resources leaves the response of a store without the object to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

EXPOSURE = DAY * 100000 + 1


@pytest.fixture
def store() -> Iterator[Store]:
    with serving() as store:
        yield store
    gc.collect()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


def files_of(*roots: Path | str, stores: tuple[str, ...] = ()) -> RawFiles:
    remote = [{"uri": uri} for uri in stores]
    return RawFiles(ArrivalsConfig.model_validate({"roots": roots, "remote": remote}))


def test_a_file_below_a_linked_root_is_copied(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.fits").write_bytes(b"raw")
    (tmp_path / "raw").symlink_to("disk")
    copy = files_of(tmp_path / "raw").fetch(f"{tmp_path}/raw/a.fits", folder)
    assert (copy, copy.read_bytes()) == (folder / "a.fits", b"raw")


@pytest.mark.parametrize("kind", ["link", "folder link", "fifo", "outside", "other store", "no path"])
def test_fault_17_a_path_that_leads_out_of_the_roots_is_not_opened(
    tmp_path: Path, folder: Path, kind: str
) -> None:
    """Fault 17: also after the supervisor's check."""
    root, secret = tmp_path / "raw", tmp_path / "secret"
    for each in (root, secret):
        each.mkdir()
    (secret / "a.fits").write_bytes(b"secret")
    match kind:
        case "link":
            (root / "a.fits").symlink_to(secret / "a.fits")
        case "folder link":
            (root / "day").symlink_to(secret)
        case "fifo":
            os.mkfifo(root / "a.fits")
    path = {
        "folder link": f"{root}/day/a.fits",
        "outside": f"{secret}/a.fits",
        "other store": "http://127.0.0.1:1/secret/a.fits",
        "no path": "a.fits",
    }.get(kind, f"{root}/a.fits")
    files = files_of(root, stores=("http://127.0.0.1:1/raw",))
    with pytest.raises(BadMessage):
        files.fetch(path, folder)
    assert not list(folder.iterdir())


def test_a_raw_that_is_replaced_by_a_link_is_unreadable(
    rigs: MakeRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 17, when the link is put there after the supervisor's check."""
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw()
    away = tmp_path / "away.fits"
    shutil.move(raw.path, away)
    Path(raw.path).symlink_to(away)
    pauses: list[float] = []
    monkeypatch.setattr(ingest.time, "sleep", pauses.append)
    monkeypatch.setattr(rawfiles.shutil, "copyfile", pytest.fail)
    with pytest.raises(VisitFailed, match="is a link out of the raw root") as caught:
        worker.ingest(raw)
    assert caught.value.outcome == Outcome.RAW_UNREADABLE
    assert pauses == list(ingest.RETRIES_S)


def test_a_sidecar_that_leads_out_is_not_read(
    rigs: MakeRig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw()
    assert raw.sidecar is not None
    away = tmp_path / "away.json"
    shutil.move(raw.sidecar, away)
    Path(raw.sidecar).symlink_to(away)
    assert worker.ingest(raw).exposure == EXPOSURE
    assert "is a link out of the raw root" in caplog.text


def stored(raw: Raw, raws: Path, store: Store) -> Raw:
    """Move a raw to the store."""
    path = raw.path.removeprefix(str(raws))
    store.objects[f"/raw{path}"] = Path(raw.path).read_bytes()
    Path(raw.path).unlink()
    uri = f"{store.uri}/raw{path.replace('#', '%23').replace(':', '%3A')}"
    return raw.model_copy(update={"path": uri, "sidecar": None})


def test_a_visit_whose_raw_is_in_a_store_is_processed(rigs: MakeRig, store: Store) -> None:
    rig, worker = rigs(arrivals={"remote": [{"uri": f"{store.uri}/raw"}]})
    worker.prepare(rig.order(main="Short", before=""))
    raw = stored(rig.raw(), rig.raws, store)
    assert worker.ingest(raw).exposure == EXPOSURE
    assert worker.process(Process(exposures=(EXPOSURE,))).outcome == Outcome.SUCCEEDED
    assert store.reads(".fits") == 1
    assert not [path for path in (rig.context.repo / "incoming").iterdir() if path.is_file()]


@pytest.mark.parametrize("prefix", ["raw", "bucket/run=3", "bucket/2025:11 a", "bucket/näme+"])
def test_an_object_is_fetched_whatever_the_characters_of_its_root(
    store: Store, folder: Path, prefix: str
) -> None:
    store.objects[f"/{prefix}/day#1/a.fits"] = b"raw"
    layout = {"path": "{instrument}/{exposure}", "detector_keyword": "CCDNUM"}
    remote = [{"uri": f"{store.uri}/{prefix}", "layout": layout}, {"uri": f"{store.uri}/other"}]
    files = RawFiles(ArrivalsConfig.model_validate({"roots": (), "remote": remote}))
    path = escaped(f"{store.uri}/{prefix}/day#1/a.fits")
    assert files.fetch(path, folder).read_bytes() == b"raw"
    assert files.detector_keyword(path) == "CCDNUM"


def test_fault_21_a_missing_object_is_unreadable_after_some_attempts(
    rigs: MakeRig, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault 21, in a store: the object may appear shortly after its notice."""
    rig, worker = rigs(arrivals={"remote": [{"uri": f"{store.uri}/raw"}]})
    worker.prepare(rig.order(main="Short", before=""))
    raw = stored(rig.raw(), rig.raws, store)
    objects, store.objects = store.objects, {}
    pauses: list[float] = []
    monkeypatch.setattr(ingest.time, "sleep", pauses.append)
    with pytest.raises(VisitFailed, match=r"cannot be read: FileNotFoundError") as caught:
        worker.ingest(raw)
    assert caught.value.outcome == Outcome.RAW_UNREADABLE
    assert pauses == list(ingest.RETRIES_S)
    store.objects = objects
    assert worker.ingest(raw).exposure == EXPOSURE


def test_requests_to_an_unavailable_store_are_not_repeated(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, worker = rigs(arrivals={"remote": [{"uri": "http://127.0.0.1:1/raw"}]})
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw().model_copy(update={"path": "http://127.0.0.1:1/raw/a.fits", "sidecar": None})
    tries: list[object] = []

    class Resource:
        def __init__(self, uri: str):
            """Name an object of a store that is down."""

        def transfer_from(self, source: "Resource", **how: object) -> None:
            tries.append(source)
            raise requests.ConnectionError("refused, after some tries")

    monkeypatch.setattr(ingest.time, "sleep", pytest.fail)
    monkeypatch.setattr(remote, "ResourcePath", Resource)
    with pytest.raises(VisitFailed, match=r"StoreError.*refused, after some tries") as caught:
        worker.ingest(raw)
    assert caught.value.outcome == Outcome.RAW_UNREADABLE
    assert len(tries) == 1


# --- requests of a reader to stores ------------------------------------------


def test_a_sidecar_in_a_store_is_one_object(tmp_path: Path) -> None:
    path = tmp_path / "a #1.json"
    path.write_text('{"EXPTIME": 30.0}')
    assert remote.read_json(path.as_uri()) == {"EXPTIME": 30.0}
    path.write_text("[1, 2]")
    with pytest.raises(BadMessage, match="no JSON object"):
        remote.read_json(path.as_uri())
    path.write_text(f'{{"a": "{"x" * remote.JSON_LIMIT}"}}')
    with pytest.raises(BadMessage, match="bytes are more than the"):
        remote.read_json(path.as_uri())


def test_only_the_header_of_an_object_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "HEADER_CHUNK", 1000)
    path = write_raw(tmp_path, make_header(1))
    assert remote.read_header(path.as_uri())["OBJECT"] == "field"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(BadMessage):
        remote.read_header(path.as_uri())
    path.write_bytes(b"SIMPLE  =                    T".ljust(80) * 10_000)
    monkeypatch.setattr(remote, "HEADER_LIMIT", 2000)
    with pytest.raises(BadMessage):
        remote.read_header(path.as_uri())


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError("500 Server Error"), remote.StoreError),
        (RuntimeError("of the store's own library"), remote.StoreError),
        (OSError(errno.ENOSPC, "No space left on device"), OSError),
        (FileNotFoundError("404"), FileNotFoundError),
    ],
)
def test_errors_of_a_store_differ_from_those_of_this_host(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception]
) -> None:
    def fail(self: ResourcePath, size: int = -1) -> bytes:
        raise raised

    monkeypatch.setattr(type(ResourcePath("file:///a.json")), "read", fail)
    with pytest.raises(expected) as caught:
        remote.read_json("file:///a.json")
    assert isinstance(caught.value, remote.StoreError) == (expected is remote.StoreError)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("fpacked_single_image.fits.fz", "2026-11-28T20:16:03.034"),
        ("groupid_is_a_number.fits", 20261128000018),
        ("nan_in_a_card_nobody_needs.fits", "2026-11-28T20:25:49.223"),
    ],
)
def test_the_group_of_an_object_may_be_in_its_first_extension(name: str, group: str | int) -> None:
    path = Path(__file__).parents[1] / "data" / "raws" / name
    assert remote.read_header(path.as_uri())["GROUPID"] == group


def test_an_object_without_a_group_has_its_other_keywords(tmp_path: Path) -> None:
    header = make_header(1)
    del header["GROUPID"]
    path = write_raw(tmp_path, header, sidecar=False)
    found = remote.read_header(path.as_uri())
    assert (found["DETECTOR"], "GROUPID" in found) == (1, False)
