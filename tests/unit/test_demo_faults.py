# SPDX-License-Identifier: BSD-3-Clause
"""Faults that a simulated camera puts into its files on request, and the ways of writing them."""

import gzip
import os
from pathlib import Path

import pytest
from astropy.io import fits

from ppdaemon.clock import day_obs
from ppdaemon.demo.delivery import Delivery, WriteMode
from ppdaemon.demo.faults import NOT_FITS, WRONG_GROUP, Faults, HeaderFault, Rewrite, with_cards
from ppdaemon.demo.oldfiles import write_old_files
from ppdaemon.demo.telescope import Compression, SimulatedCamera, TelescopeStep, timeline
from ppdaemon.demo.visits import Cadence, next_seq_num, plan_visits
from ppdaemon.raws.layout import make_layout

BEGIN_TAI_S = 1795317916.0
CADENCE = Cadence(every_s=70.0, lead_s=40.0, exposure_s=30.0, readout_s=2.0)
PATH = Path("a/b/x.fits.fz")


def written_files(faults: Faults, detector: int = 3) -> list[tuple[str, bytes, float]]:
    files_to_write = faults.files_to_write(PATH, bytes(1000), b"{}", detector)
    return [(each.path.name, each.content, each.after_s) for each in files_to_write]


def plan(instrument: str = "DemoCam", snaps: int = 1):
    (visit,) = plan_visits(1, BEGIN_TAI_S, CADENCE, instrument=instrument, snaps=snaps)
    return visit.exposures[-1]


def test_without_faults_the_sidecar_is_written_and_then_the_image():
    assert written_files(Faults()) == [("x.json", b"{}", 0.0), ("x.fits.fz", bytes(1000), 0.0)]


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        (Faults(frozenset({3})), []),
        (Faults(truncate_bytes=10), [("x.json", b"{}", 0.0), ("x.fits.fz", bytes(10), 0.0)]),
        (Faults(truncate_bytes=0), [("x.json", b"{}", 0.0), ("x.fits.fz", b"", 0.0)]),
        (Faults(not_fits=True), [("x.json", b"{}", 0.0), ("x.fits.fz", NOT_FITS, 0.0)]),
        (Faults(no_sidecar=True), [("x.fits.fz", bytes(1000), 0.0)]),
        (Faults(late_sidecar_s=2.0), [("x.fits.fz", bytes(1000), 0.0), ("x.json", b"{}", 2.0)]),
        (
            Faults(late_sidecar_s=2.0, rewrite=Rewrite.REPLACE, truncate_bytes=7),
            [("x.fits.fz", bytes(7), 0.0), ("x.fits.fz", bytes(7), 1.0), ("x.json", b"{}", 2.0)],
        ),
    ],
)
def test_faults_affect_the_chosen_detectors_and_can_be_combined(faults, expected):
    assert written_files(faults) == expected
    if not faults.drop_detectors:
        some = Faults(**(vars(faults) | {"only": frozenset({3})}))
        assert written_files(some) == expected
        assert written_files(some, 4) == written_files(Faults())


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"no_sidecar": True, "late_sidecar_s": 1.0}, "cannot be both missing and late"),
        ({"not_fits": True, "truncate_bytes": 9}, "a file that is not FITS"),
        ({"not_fits": True, "header_fault": HeaderFault.GROUP}, "a file that is not FITS"),
        ({"truncate_bytes": 0, "header_fault": HeaderFault.GROUP}, "an empty file has no header"),
        ({"only": frozenset({1})}, "no fault is chosen"),
        (
            {"only": frozenset({1, 2}), "not_fits": True, "drop_detectors": frozenset({2})},
            r"detectors \[2\] are both faulty and dropped",
        ),
    ],
)
def test_faults_that_contradict_are_refused(faults, message):
    with pytest.raises(ValueError, match=message):
        Faults(**faults)


@pytest.mark.parametrize("mode", list(WriteMode))
def test_files_are_complete_with_their_sidecars_and_there_are_no_others(mode, tmp_path, clock):
    slept = []
    delivery = Delivery(tmp_path, clock.tai, mode=mode, slow_s=2.0, sleep=slept.append)
    files = [(number, Path(f"a/b/{number}.fits"), bytes(10_000 + number), b"{}") for number in range(3)]
    assert delivery.deliver_all(files) == 3
    names = sorted(each.name for each in (tmp_path / "a/b").iterdir())
    assert names == ["0.fits", "0.json", "1.fits", "1.json", "2.fits", "2.json"]
    assert [len((tmp_path / path).read_bytes()) for _, path, _, _ in files] == [10_000, 10_001, 10_002]
    # Slow writers work in parallel: three take as long as one.
    assert sum(slept) == pytest.approx(2.0 if mode in (WriteMode.SLOW, WriteMode.REOPEN) else 0.0)


def test_a_slow_file_grows_and_a_reopened_one_has_its_first_block(tmp_path, clock):
    path = tmp_path / "x.fits"
    for mode, sizes in ((WriteMode.SLOW, range(0, 10_000, 501)), (WriteMode.REOPEN, [2880] * 20)):
        seen = []
        Delivery(
            tmp_path, clock.tai, mode=mode, sleep=lambda _, seen=seen: seen.append(path.stat().st_size)
        ).deliver(Path("x.fits"), bytes(10_000), b"{}", 0)
        assert seen == list(sizes)
        assert path.stat().st_size == 10_000


@pytest.mark.parametrize("rewrite", list(Rewrite))
def test_a_file_that_is_written_twice_is_replaced_or_overwritten(rewrite, tmp_path, clock):
    path, seen = tmp_path / "x.fits", []

    def sleep(seconds):
        if seconds == 1.0:
            seen.append(path.stat())

    Delivery(tmp_path, clock.tai, faults=Faults(rewrite=rewrite), sleep=sleep).deliver(
        Path("x.fits"), bytes(10_000), b"{}", 0
    )
    (before,) = seen
    after = path.stat()
    assert (before.st_size, after.st_size) == (10_000, 10_000)
    assert (before.st_ino == after.st_ino) is (rewrite is Rewrite.OVERWRITE)
    assert after.st_ctime_ns > before.st_ctime_ns


@pytest.mark.parametrize("header_fault", list(HeaderFault))
@pytest.mark.parametrize("instrument", ["DemoCam", "LSSTCam"])
def test_a_wrong_header_contradicts_its_file_name_and_its_sidecar(header_fault, instrument):
    faults = Faults(header_fault=header_fault, only=frozenset({1}))
    camera = SimulatedCamera(instrument, [0, 1], faults=faults)
    exposed = plan(instrument)
    for detector, path, image, sidecar in camera.read_out(exposed):
        header = fits.Header.fromstring(image)
        right = detector != 1
        assert (header["GROUPID"] == exposed.group) is (right or header_fault is not HeaderFault.GROUP)
        assert header["GROUPID"] in (exposed.group, WRONG_GROUP)
        assert (header["DETECTOR"] == detector) is (right or header_fault is not HeaderFault.DETECTOR)
        assert path.name.endswith(f"{header['RAFTBAY']}_{header['CCDSLOT']}.fits") is (
            right or header_fault is not HeaderFault.DETECTOR
        )
        assert f'"GROUPID": "{exposed.group}"'.encode() in sidecar
        assert f'"DETECTOR": {detector}'.encode() in sidecar


def test_a_card_that_is_not_there_cannot_be_changed():
    with pytest.raises(ValueError, match="the header has no UNKNOWN"):
        with_cards(b"END".ljust(2880), {"UNKNOWN": 1})


@pytest.mark.parametrize("layout", ["lsst", "imsim", "generic"])
def test_paths_of_every_layout_are_parsed_to_the_values_they_were_made_from(layout):
    camera = SimulatedCamera("LSSTCam", [94, 189], layout=layout, compression=Compression.FZ)
    exposed = plan("LSSTCam", snaps=2)
    read = make_layout(layout, {"LSSTCam": [94, 189]})
    names = [read.parse(path.as_posix()) for _, path, _, _ in camera.read_out(exposed)]
    assert [(name.detector, name.exposure, name.day_obs) for name in names] == [
        (94, exposed.exposure_id, exposed.day_obs),
        (189, exposed.exposure_id, exposed.day_obs),
    ]
    if layout == "generic":
        assert {(name.group, name.snap) for name in names} == {(exposed.group, 1)}


def test_a_gzipped_file_is_the_same_file():
    files = {
        each: list(SimulatedCamera("LATISS", compression=each).read_out(plan("LATISS")))
        for each in (Compression.NONE, Compression.GZ)
    }
    ((_, path, plain, _),), ((_, zipped_path, zipped, _),) = files.values()
    assert zipped_path.name == f"{path.name}.gz"
    assert gzip.decompress(zipped) == plain


@pytest.mark.parametrize("layout", ["lsst", "imsim", "generic"])
def test_the_next_sequence_number_is_free_in_every_layout(layout, tmp_path, clock):
    camera = SimulatedCamera("LATISS", layout=layout)
    delivery = Delivery(tmp_path, clock.tai)
    assert next_seq_num(tmp_path, "LATISS", BEGIN_TAI_S, layout) == 1
    for visit in plan_visits(2, BEGIN_TAI_S, CADENCE, instrument="LATISS", first_seq_num=41):
        delivery.deliver_all(camera.read_out(visit.exposures[0]))
    assert next_seq_num(tmp_path, "LATISS", BEGIN_TAI_S, layout) == 43


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("LATISS", None, Faults(header_fault=HeaderFault.DETECTOR)), "no other detector"),
        (("DemoCam", [1], Faults(frozenset({2}))), r"detectors \[2\] are not read out"),
    ],
)
def test_a_fault_that_a_camera_cannot_have_is_refused(arguments, message):
    instrument, detectors, faults = arguments
    with pytest.raises(ValueError, match=message):
        SimulatedCamera(instrument, detectors, faults=faults)


def test_early_raws_are_written_before_the_announcement_and_late_ones_long_after():
    visits = plan_visits(1, BEGIN_TAI_S, CADENCE)

    def played(**faults):
        events = timeline(visits, CADENCE, announce=True, cancel=False, **faults)
        return [(event.after_s, event.step) for event in events]

    assert played(announce_after_s=5.0) == [
        (0.0, TelescopeStep.EXPOSE),
        (32.0, TelescopeStep.WRITE),
        (37.0, TelescopeStep.ANNOUNCE),
    ]
    assert played(late_s=100.0) == [
        (0.0, TelescopeStep.ANNOUNCE),
        (40.0, TelescopeStep.EXPOSE),
        (172.0, TelescopeStep.WRITE),
    ]


def test_old_files_fill_days_back_from_the_newest_and_have_old_stamps(tmp_path):
    exposures = write_old_files(tmp_path, "LSSTCam", 1000, BEGIN_TAI_S, content=b"old", exposures_a_day=3)
    assert exposures == 5
    days = sorted((tmp_path / "LSSTCam").iterdir())
    assert [int(day.name) for day in days] == [day_obs(BEGIN_TAI_S - 86_400), day_obs(BEGIN_TAI_S)]
    assert [len(list(day.iterdir())) for day in days] == [2, 3]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 1000
    layout = make_layout("lsst", {"LSSTCam": range(205)})
    assert all(layout.parse(path.relative_to(tmp_path).as_posix()) for path in files)
    newest = BEGIN_TAI_S - 37.0
    for path in tmp_path.rglob("*"):
        if path != tmp_path / "LSSTCam":
            assert os.stat(path).st_mtime in (newest, newest - 86_400)
