# SPDX-License-Identifier: BSD-3-Clause
"""The demo's association task with an alert database of its own: visits in another order than taken."""

import gc
import sqlite3
import warnings
from pathlib import Path

import pandas
import pytest
from astropy.table import Table
from astropy.time import Time
from lsst.daf.butler import Timespan
from lsst.pipe.base.utils import RegionTimeInfo
from lsst.sphgeom import Angle, Circle, LonLat, UnitVector3d

from ppdaemon.demo.central import make_apdb
from ppdaemon.demo.tasks.associate import AssociateTask, LoadDiaCatalogsTask

DETECTOR = 4
SKY = Circle(UnitVector3d(LonLat.fromDegrees(150.0, 2.0)), Angle.fromDegrees(0.5))
TAKEN = {visit: 61_000.0 + visit / 1440.0 for visit in (1, 2, 3)}
"""Middle of the exposure by visit, TAI modified Julian date."""


@pytest.fixture
def apdb(tmp_path: Path) -> Path:
    config = make_apdb(tmp_path)
    with warnings.catch_warnings():
        # The tables are made through an engine that dax_apdb leaves to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return config


def known(apdb: Path, visit: int) -> dict[str, pandas.DataFrame]:
    """Return objects and sources as the preprocessing of a visit reads them."""
    config = LoadDiaCatalogsTask.ConfigClass(apdb_config_url=str(apdb))
    begin = Time(TAKEN[visit], format="mjd", scale="tai")
    region_time = RegionTimeInfo(region=SKY, timespan=Timespan(begin, None))
    return LoadDiaCatalogsTask(config=config).run(region_time).getDict()


def associate(apdb: Path, visit: int) -> pandas.DataFrame:
    """Find one source at the same place in a visit; return its object."""
    numbers = ("x", "y", "xy_err", "flux", "flux_err", "science_flux", "science_flux_err", "snr", "chi2")
    row = dict.fromkeys((*numbers, "psf_fwhm_px", "pixel_count"), 1.0)
    row |= {"ra": 150.0, "dec": 2.0, "band": "r", "rejected": "", "exposure_time_s": 30.0}
    candidates = Table([row | {"midpoint_mjd_tai": TAKEN[visit]}])
    config = AssociateTask.ConfigClass(apdb_config_url=str(apdb))
    task = AssociateTask(config=config)
    return task.run(candidates, **known(apdb, visit), visit=visit, detector=DETECTOR).dia_object_apdb


def test_the_last_state_of_an_object_knows_all_visits_whatever_their_order(apdb):
    for visit in (2, 3, 1):
        (made,) = associate(apdb, visit).to_dict("records")
    (last,) = known(apdb, 3)["preloaded_dia_objects"].to_dict("records")
    assert made["nDiaSources"] == last["nDiaSources"] == 3
    assert last["validityStartMjdTai"] == made["validityStartMjdTai"]
    assert (last["firstDiaSourceMjdTai"], last["lastDiaSourceMjdTai"]) == (TAKEN[1], TAKEN[3])
    with sqlite3.connect(apdb.with_suffix(".sqlite3")) as connection:
        states = connection.execute(
            'SELECT nDiaSources, validityStartMjdTai < validityEndMjdTai FROM "DiaObject" ORDER BY 1'
        ).fetchall()
    connection.close()
    assert states == [(1, 1), (2, 1), (3, None)]
