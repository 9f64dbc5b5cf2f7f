# SPDX-License-Identifier: BSD-3-Clause
"""Good, invalid and missing raws."""

import gzip
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from lsst.daf.butler import Butler
from toycam import DAY, GROUP, MakeRig, ToyTranslator, make_header

from ppdaemon.errors import VisitFailed
from ppdaemon.messages import Process
from ppdaemon.middleware.raws import ingest, rawfiles
from ppdaemon.middleware.raws.header import BadFits, read_fits_header
from ppdaemon.states import Outcome

pytest_plugins = ("toyfixtures",)

EXPOSURE = DAY * 100000 + 1


def test_a_raw_makes_the_records_of_its_exposure(rigs: MakeRig) -> None:
    rig, worker = rigs(engine={"kind": "separable"})
    worker.prepare(rig.order(main="Short", before=""))
    worker.ingest(rig.raw())
    with Butler.from_config(str(rig.context.repo / "repo")) as butler:
        (exposure,) = butler.query_dimension_records("exposure")
        (day,) = butler.query_dimension_records("day_obs")
    assert (exposure.id, exposure.group, exposure.physical_filter) == (EXPOSURE, GROUP, "r_03")
    assert (exposure.sky_angle, exposure.tracking_dec) == (0.0, 2.0)
    assert day.id == DAY
    assert day.timespan.begin.isot == "2026-11-22T12:00:00.000000"


def test_a_taken_raw_is_read_from_the_ram_disk(rigs: MakeRig) -> None:
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw()
    worker.ingest(raw)
    Path(raw.path).unlink()
    assert worker.ingest(raw).exposure == EXPOSURE, "a repeat does not read again"
    assert worker.process(Process(exposures=(EXPOSURE,))).outcome == Outcome.SUCCEEDED
    assert not [path for path in (rig.context.repo / "incoming").iterdir() if path.is_file()]


def test_a_missing_or_invalid_sidecar_is_ignored(rigs: MakeRig) -> None:
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    contents = (None, "", "{", '{"OBSID": NaN}', "[1]", '{"INSTRUME": "ToyCam"}')
    for seq_num, content in enumerate(contents, start=1):
        raw = rig.raw(seq_num=seq_num)
        assert raw.sidecar is not None
        if content is None:
            Path(raw.sidecar).unlink()
        else:
            Path(raw.sidecar).write_text(content)
        assert worker.ingest(raw).exposure == DAY * 100000 + seq_num


def test_a_header_that_contradicts_is_a_bad_raw(rigs: MakeRig) -> None:
    """Fault 18: another detector's or group's header."""
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    other = "2026-11-23T04:00:00.000"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"DETECTOR": 3}, "detector 3 instead of 1"),
        ({"GROUPID": other}, f"group '{other}' instead of '{GROUP}'"),
        ({"SEQNUM": 7}, f"exposure {DAY * 100000 + 7} instead of {EXPOSURE}"),
        ({"INSTRUME": "LATISS"}, "instrument 'LATISS' instead of 'ToyCam'"),
        ({"DATE_END": None}, "the header has no end"),
    )
    for header, reason in cases:
        with pytest.raises(VisitFailed, match=reason) as caught:
            worker.ingest(rig.raw(sidecar=False, **header))
        assert caught.value.outcome == Outcome.BAD_RAW


def test_a_sidecar_of_another_detector_is_ignored(rigs: MakeRig, caplog: pytest.LogCaptureFixture) -> None:
    """Fault 82: each detector goes by its own header."""
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw()
    assert raw.sidecar is not None
    sidecar = json.loads(Path(raw.sidecar).read_text())
    Path(raw.sidecar).write_text(json.dumps(sidecar | {"DETECTOR": 2}))
    assert worker.ingest(raw).exposure == EXPOSURE
    assert "DETECTOR is 1 in the FITS file and 2 in its sidecar" in caplog.text


def test_after_a_bad_raw_a_good_one_is_taken(rigs: MakeRig) -> None:
    """Fault 18: truncated; the file is untouched, the next visit fine."""
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw()
    whole = Path(raw.path).read_bytes()
    Path(raw.path).write_bytes(whole[:-2880])
    with pytest.raises(VisitFailed, match="the file ends at byte") as caught:
        worker.ingest(raw)
    assert caught.value.outcome == Outcome.BAD_RAW
    assert Path(raw.path).read_bytes() == whole[:-2880], "the file is not touched"
    Path(raw.path).write_bytes(whole)
    assert worker.ingest(raw).exposure == EXPOSURE


@pytest.mark.parametrize("content", [b"", b"not FITS at all\n", b"SIMPLE  =".ljust(2880)])
def test_a_file_that_is_not_fits_is_a_bad_raw_and_is_not_changed(rigs: MakeRig, content: bytes) -> None:
    """Fault 18: empty, not FITS; the next is fine."""
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw()
    whole = Path(raw.path).read_bytes()
    Path(raw.path).write_bytes(content)
    with pytest.raises(VisitFailed, match="is rejected") as caught:
        worker.ingest(raw)
    assert caught.value.outcome == Outcome.BAD_RAW
    assert Path(raw.path).read_bytes() == content
    Path(raw.path).write_bytes(whole)
    assert worker.ingest(raw).exposure == EXPOSURE


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "I/O error")])
def test_a_raw_that_cannot_be_read_is_unreadable_after_some_attempts(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """Fault 21: no permission, EIO."""
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw, tries = rig.raw(), []

    def refuse(source: object, target: object, **_: object) -> None:
        tries.append(source)
        raise error

    monkeypatch.setattr(ingest.time, "sleep", lambda pause_s: None)
    monkeypatch.setattr(rawfiles.shutil, "copyfile", refuse)
    with pytest.raises(VisitFailed, match="cannot be read") as caught:
        worker.ingest(raw)
    assert caught.value.outcome == Outcome.RAW_UNREADABLE
    assert len(tries) == 1 + len(ingest.RETRIES_S)
    monkeypatch.undo()
    assert worker.ingest(raw).exposure == EXPOSURE


def test_a_missing_raw_is_unreadable(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 21: deleted before opening."""
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw()
    Path(raw.path).unlink()
    pauses: list[float] = []
    monkeypatch.setattr(ingest.time, "sleep", pauses.append)
    with pytest.raises(VisitFailed, match="cannot be read: FileNotFoundError") as caught:
        worker.ingest(raw)
    assert caught.value.outcome == Outcome.RAW_UNREADABLE
    assert pauses == list(ingest.RETRIES_S)


def test_a_raw_that_reappears_is_taken(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 21: it is retried briefly."""
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw()
    away = rig.raws / "away"
    shutil.move(raw.path, away)
    monkeypatch.setattr(ingest.time, "sleep", lambda pause_s: shutil.move(away, raw.path))
    assert worker.ingest(raw).exposure == EXPOSURE


# --- the structure of FITS files -------------------------------------------


@pytest.mark.parametrize("unusual", ["special records", "no padding", "NaN", "gzipped with zeros"])
def test_an_unusual_raw_with_all_its_pixels_is_processed(rigs: MakeRig, unusual: str) -> None:
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw(sidecar=False, AIRTEMP=5)
    path = Path(raw.path)
    content = path.read_bytes()
    match unusual:
        case "special records":
            path.write_bytes(content + b"\0" * 2880)
        case "no padding":
            path.write_bytes(content.removesuffix(b"\0" * 100))
        case "NaN":
            card = b"AIRTEMP =                    5"
            assert card in content
            path.write_bytes(content.replace(card, b"AIRTEMP =                  NaN"))
        case "gzipped with zeros":
            path.write_bytes(gzip.compress(content) + b"\0" * 512)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy warns of the same when the task reads the pixels
        assert worker.ingest(raw).exposure == EXPOSURE
        assert worker.process(Process(exposures=(EXPOSURE,))).outcome == Outcome.SUCCEEDED


def test_keywords_may_be_in_the_first_extension(rigs: MakeRig) -> None:
    """As fpack writes a single image: the primary header is empty."""
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw(sidecar=False)
    image = fits.CompImageHDU(np.ones((40, 50), dtype=np.int16))
    image.header.update(make_header(1))
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(raw.path, overwrite=True)
    assert worker.ingest(raw).exposure == EXPOSURE


def test_a_group_that_is_a_number_is_its_digits(rigs: MakeRig) -> None:
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before="", groupId="20261128000018"))
    raw = rig.raw(sidecar=False, GROUPID=20261128000018)
    assert worker.ingest(raw.model_copy(update={"group": "20261128000018"})).exposure == EXPOSURE


def test_a_header_without_a_group_contradicts_nothing(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base translator returns the exposure id, as for DECam, HSC and MegaPrime."""

    def to_exposure_group(translator: ToyTranslator) -> str:
        return str(translator._header.get("GROUPID", translator.to_exposure_id()))

    monkeypatch.setattr(ToyTranslator, "to_exposure_group", to_exposure_group)
    rig, worker = rigs()
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw(sidecar=False)
    content = Path(raw.path).read_bytes()
    Path(raw.path).write_bytes(content.replace(b"GROUPID =", b"NOGROUP ="))
    assert worker.ingest(raw).exposure == EXPOSURE
    other = rig.raw(seq_num=2, sidecar=False, GROUPID=str(EXPOSURE + 1))
    with pytest.raises(VisitFailed, match="group"):
        worker.ingest(other)


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """Return a FITS file of three HDUs, one of them compressed."""
    path = tmp_path / "whole.fits"
    rows = fits.ImageHDU(np.arange(6000, dtype=np.int32).reshape(2000, 3))
    fits.HDUList([fits.PrimaryHDU(), rows, fits.CompImageHDU(rows.data)]).writeto(path)
    return path.read_bytes()


def overwritten(data: bytes) -> bytes:
    """Return the bytes with some in the middle overwritten."""
    middle = len(data) // 2
    return data[:middle] + b"\xff" * 64 + data[middle + 64 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: b"{}", "HDU 1: not a header"),
        (lambda data: data[:300], "HDU 1: the file ends within a header"),
        (lambda data: data[: 2880 + 400], "HDU 2: the file ends within a header"),
        (lambda data: data[: 2880 * 4], "HDU 2: the file ends at byte"),
        (lambda data: data[:2880], "no data"),
        (lambda data: data[:-2880], "HDU 3: the file ends at byte"),
        (lambda data: data + b"\0" * 2880 + data[2880:], "HDU 4: bytes that belong to no HDU"),
        (lambda data: data.replace(b"BITPIX  ", b"BITPOX  ", 1), "without BITPIX"),
        (
            lambda data: data.replace(b"NAXIS1  =                    3", b"NAXIS1  =                -2880"),
            "NAXIS",
        ),
        (lambda data: gzip.compress(data)[:-20], "HDU"),
        (lambda data: overwritten(gzip.compress(data)), "HDU"),
    ],
)
def test_a_damaged_file_is_detected(tmp_path: Path, whole: bytes, damage: Any, reason: str) -> None:
    path = tmp_path / "damaged.fits"
    path.write_bytes(damage(whole))
    with pytest.raises(BadFits, match=reason):
        read_fits_header(path, "x.fits")


def test_the_header_of_a_complete_file_is_read_compressed_or_not(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(whole)
    assert read_fits_header(path, "x.fits")["SIMPLE"]
    path.write_bytes(gzip.compress(whole))
    assert read_fits_header(path, "x.fits")["SIMPLE"]


def test_a_raw_with_a_nonstandard_card_is_read(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "odd.fits"
    path.write_bytes(whole.replace(b"conforms", b"conf\xe9rms", 1))
    assert path.read_bytes() != whole
    assert read_fits_header(path, "x.fits")["NAXIS"] == 0


@pytest.mark.parametrize("ending", [".FITS", ".fit", ".fz", ".gz", ".FITS.GZ"])
def test_a_raw_with_another_ending_is_processed(rigs: MakeRig, ending: str) -> None:
    rig, worker = rigs(engine={"kind": "separable"})
    worker.prepare(rig.order(main="Short", before=""))
    raw = rig.raw(sidecar=False)
    content = Path(raw.path).read_bytes()
    renamed = Path(raw.path).with_suffix("").with_name(f"x{ending}")
    renamed.write_bytes(gzip.compress(content) if ending.lower().endswith(".gz") else content)
    raw = raw.model_copy(update={"path": str(renamed)})
    assert worker.ingest(raw).exposure == EXPOSURE
    assert worker.process(Process(exposures=(EXPOSURE,))).outcome == Outcome.SUCCEEDED
