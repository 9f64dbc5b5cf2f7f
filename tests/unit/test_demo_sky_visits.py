# SPDX-License-Identifier: BSD-3-Clause
"""The events of a simulated telescope, their times, and its files."""

import json
from pathlib import Path
from urllib.parse import unquote_plus

import pytest
from astropy.io import fits

from ppdaemon.demo.delivery import Delivery, NoticeKind, notice
from ppdaemon.demo.plan import ImageType
from ppdaemon.demo.telescope import SimulatedCamera, Telescope, TelescopeStep, timeline
from ppdaemon.demo.visits import Cadence, FieldPointing, next_seq_num, plan_visits
from ppdaemon.errors import ConfigError
from ppdaemon.visit import NextVisit

BEGIN_TAI_S = 1795317916.0
CADENCE = Cadence(every_s=70.0, lead_s=40.0, exposure_s=30.0, readout_s=2.0)


def test_visits_overlap_as_in_a_real_night():
    visits = plan_visits(2, BEGIN_TAI_S, CADENCE, snaps=2)
    events_of = [
        (m.after_s, m.step, m.visit.number) for m in timeline(visits, CADENCE, announce=True, cancel=False)
    ]
    assert events_of == [
        (0.0, TelescopeStep.ANNOUNCE, 0),
        (40.0, TelescopeStep.EXPOSE, 0),
        (70.0, TelescopeStep.ANNOUNCE, 1),
        (72.0, TelescopeStep.WRITE, 0),
        (72.0, TelescopeStep.EXPOSE, 0),
        (104.0, TelescopeStep.WRITE, 0),
        (110.0, TelescopeStep.EXPOSE, 1),
        (142.0, TelescopeStep.WRITE, 1),
        (142.0, TelescopeStep.EXPOSE, 1),
        (174.0, TelescopeStep.WRITE, 1),
    ]


def test_a_canceled_visit_is_announced_and_never_exposed():
    visits = plan_visits(1, BEGIN_TAI_S, CADENCE)
    events = timeline(visits, CADENCE, announce=True, cancel=True)
    assert [(each.after_s, each.step) for each in events] == [
        (0.0, TelescopeStep.ANNOUNCE),
        (20.0, TelescopeStep.CANCEL),
    ]


def test_speed_shortens_the_waits_and_not_the_headers():
    fast = Cadence(70.0, 40.0, 30.0, 2.0, speed=10.0)
    visits = plan_visits(1, BEGIN_TAI_S, fast)
    assert timeline(visits, fast, announce=True, cancel=False)[-1].after_s == pytest.approx(7.2)
    assert visits[0].exposures[0].begin_tai_s == BEGIN_TAI_S + 40.0


def test_the_announcement_is_valid_and_agrees_with_the_headers():
    visit = plan_visits(3, BEGIN_TAI_S, CADENCE, snaps=2, filters=("g_01", "r_03"))[1]
    event = NextVisit.model_validate_json(json.dumps(visit.next_visit(BEGIN_TAI_S)))
    first = visit.exposures[0]
    assert event.group == visit.group == first.group
    assert event.boresight == pytest.approx((first.ra_deg, first.dec_deg))
    assert event.sky_angle == first.rotpa_deg
    assert event.filter_names == ("r_03",) == (first.physical_filter,)
    assert event.nimages == 2
    assert event.start_time_tai == first.begin_tai_s
    assert visit.cancellation(0.0)["groupId"] == event.group
    assert visit.cancellation(0.0)["scriptSalIndex"] == event.script_sal_index


def test_a_calibration_visit_has_no_position_on_the_sky():
    visit = plan_visits(1, BEGIN_TAI_S, CADENCE, image_type=ImageType.BIAS)[0]
    event = NextVisit.model_validate_json(json.dumps(visit.next_visit(BEGIN_TAI_S)))
    assert event.boresight is None
    assert event.sky_angle is None
    assert visit.exposures[0].ra_deg is None


def test_exposures_are_numbered_through_and_groups_differ():
    visits = plan_visits(3, BEGIN_TAI_S, CADENCE, snaps=2, first_seq_num=11)
    assert [each.seq_num for visit in visits for each in visit.exposures] == [11, 12, 13, 14, 15, 16]
    assert len({visit.group for visit in visits}) == 3


def test_dithers_differ_and_stay_below_an_arcminute():
    pointings = [FieldPointing().dithered(number) for number in range(30)]
    offsets_deg = [max(abs(each.ra_deg - 150.1), abs(each.dec_deg - 2.2)) for each in pointings]
    assert len({(each.ra_deg, each.dec_deg) for each in pointings}) == 30
    assert max(offsets_deg) < 1.0 / 60.0


def test_impossible_runs_are_refused():
    with pytest.raises(ValueError, match="one group cannot name 2 visits"):
        plan_visits(2, BEGIN_TAI_S, CADENCE, group="x")
    with pytest.raises(ValueError, match="too often: 3 snaps take 96 s"):
        plan_visits(2, BEGIN_TAI_S, CADENCE, snaps=3)


def test_numbers_continue_after_the_last_one_of_the_day(tmp_path):
    assert next_seq_num(tmp_path, "DemoCam", BEGIN_TAI_S) == 1
    (tmp_path / "DemoCam/20261121/DC_O_20261121_000041").mkdir(parents=True)
    assert next_seq_num(tmp_path, "DemoCam", BEGIN_TAI_S) == 42


@pytest.mark.parametrize("kind", list(NoticeKind))
def test_a_notice_names_the_file(kind):
    path = Path("LSSTCam/20251121/MC_O_20251121_000156/a b#1.fits")
    message = notice(kind, path, 2880, BEGIN_TAI_S)
    if kind is NoticeKind.PLAIN:
        assert message == {"path": path.as_posix(), "size": 2880, "time": "2026-11-22T03:25:16.000Z"}
        return
    (record,) = message["Records"]
    assert record["eventName"] == "ObjectCreated:Put"
    stored = record["s3"]["object"]
    assert unquote_plus(stored["key"]) == path.as_posix()
    assert (stored["size"], set(stored["key"]) & set(" #")) == (2880, set())


@pytest.mark.slow
def test_a_telescope_writes_all_of_lsstcam_on_a_fake_clock(tmp_path, clock):
    cadence = Cadence(70.0, 40.0, 30.0, 2.0)
    seen, slept = [], []

    def sleep(seconds):
        slept.append(seconds)
        clock.advance(seconds)

    telescope = Telescope(
        SimulatedCamera("LSSTCam"),
        Delivery(tmp_path, clock.tai),
        clock=clock,
        sleep=sleep,
        on_event=lambda event: seen.append((event.step, event.visit.number)),
    )
    visits = plan_visits(1, clock.tai(), cadence, instrument="LSSTCam")
    assert telescope.run(timeline(visits, cadence, announce=False, cancel=False)) == 205
    assert seen == [(TelescopeStep.EXPOSE, 0), (TelescopeStep.WRITE, 0)]
    assert slept == [32.0]
    (folder,) = (tmp_path / "LSSTCam" / str(visits[0].exposures[0].day_obs)).iterdir()
    assert len(list(folder.glob("*.fits"))) == 205
    assert len(list(folder.glob("*_guider.fits"))) == 8
    with fits.open(next(folder.glob("*R22_S11.fits"))) as hdus:
        hdus.verify("exception")
        assert hdus[0].header["GROUPID"] == visits[0].group
        assert hdus[0].header["CAMCODE"] == "MC"
        assert hdus[1].data.shape == (64, 64)


def test_an_unknown_camera_or_detector_is_refused():
    with pytest.raises(ConfigError, match="'FooCam'"):
        SimulatedCamera("FooCam")
    with pytest.raises(ValueError, match="DemoCam has no detector 9, 10; it has 0 to 8"):
        SimulatedCamera("DemoCam", [8, 9, 10])
