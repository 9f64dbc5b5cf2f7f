# SPDX-License-Identifier: BSD-3-Clause
"""The outer structure of FITS files, against files that astropy writes."""

import gzip
import io

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.raws.fitsblocks import read_primary, structure


def encode(*extensions: fits.PrimaryHDU | fits.ImageHDU | fits.CompImageHDU, **keys: object) -> bytes:
    primary = fits.PrimaryHDU()
    for key, value in keys.items():
        primary.header[key] = value
    stream = io.BytesIO()
    fits.HDUList([primary, *extensions]).writeto(stream)
    return stream.getvalue()


def amplifiers() -> list[fits.CompImageHDU]:
    pixels = np.random.default_rng(5).normal(1000, 10, (64, 50)).astype(np.uint16)
    return [fits.CompImageHDU(pixels, name=f"Segment{n:02d}") for n in range(4)]


RAW = encode(*amplifiers(), GROUPID="2025-11-22T03:25:16.951")


def parse(content: bytes):
    return structure(io.BytesIO(content))


def test_a_compressed_raw_is_complete():
    found = parse(RAW)
    assert found.whole
    assert found.hdus == 5
    assert found.data_bytes > 0


def test_a_gzipped_raw_is_complete_and_a_cut_one_is_not():
    packed = gzip.compress(RAW)
    assert parse(packed).whole
    assert not parse(packed[:-1]).whole
    assert not parse(packed[: len(packed) // 2]).whole


def test_images_tables_and_empty_units_are_walked_over():
    table = fits.BinTableHDU.from_columns(
        [fits.Column("a", "PE()", array=np.array([[1, 2], [3]], dtype=object))]
    )
    content = encode(fits.ImageHDU(np.zeros((3, 5, 7))), table, fits.ImageHDU())
    assert parse(content).hdus == 4


@given(st.integers(0, len(RAW) - 1))
def test_a_file_cut_anywhere_but_between_units_is_not_complete(length):
    found = parse(RAW[:length])
    boundaries = [2880]
    with fits.open(io.BytesIO(RAW)) as hdus:
        boundaries += [hdu.fileinfo()["datLoc"] + hdu.fileinfo()["datSpan"] for hdu in hdus]
    assert found.whole is (length in boundaries)
    assert bool(found.problem) is not found.whole


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"\0" * 5760, "not a header"),
        (b"hello", "not a header"),
        (RAW + b"\0" * 2880, "belong to no HDU"),
        (RAW + b"x", "belong to no HDU"),
        (b"SIMPLE  =" + b" " * 3_000_000, "no END card"),
        (b"\x1f\x8bgarbage", "HDU 1"),
        (RAW.replace(b"BITPIX  =", b"BITFIX  =", 1), "without BITPIX"),
        (RAW.replace(b"BITPIX  =                    8", b"BITPIX  =                    9", 1), "impossible"),
        (
            RAW.replace(b"NAXIS   =                    0", b"NAXIS   =                  abc", 1),
            "whole number",
        ),
        (
            RAW.replace(b"NAXIS   =                    0", b"NAXIS   =  9999999999999999999", 1),
            "without NAXIS1",
        ),
    ],
)
def test_what_is_not_complete_has_a_problem(content, problem):
    found = parse(content)
    assert not found.whole
    assert problem in found.problem


def test_an_absurd_axis_is_no_reason_to_fail():
    content = encode(fits.ImageHDU(np.zeros((2, 2))))
    card = b"NAXIS1  =                    2"
    found = parse(content.replace(card, b"NAXIS1  = 99999999999999999999", 1))
    assert not found.whole
    assert "ends at byte" in found.problem


@given(st.binary(max_size=6000))
def test_any_bytes_are_read_without_an_error(content):
    assert not parse(content).whole
    with pytest.raises(ValueError, match="not a FITS file"):
        read_primary(io.BytesIO(content))


def test_random_groups_are_measured_by_their_own_rule(tmp_path):
    data = fits.GroupData(
        np.zeros((4, 3), dtype=np.float32), bitpix=-32, parnames=["p"], pardata=[np.arange(4.0)]
    )
    fits.GroupsHDU(data).writeto(tmp_path / "groups.fits")
    assert parse((tmp_path / "groups.fits").read_bytes()).whole


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_primary_header_is_read_like_astropy_reads_it(pack):
    values = {
        "GROUPID": "2025-11-22T03:25:16.951#1",
        "CURINDEX": 1,
        "MAXINDEX": 2,
        "EXPTIME": 30.5,
        "MJD-BEG": 60966.14,
        "ISREAL": True,
        "NOT": False,
        "QUOTE": "it's / here",
        "NOTHING": "",
        "RA": None,
    }
    header = read_primary(io.BytesIO(pack(encode(*amplifiers(), **values))))
    assert {key: header[key] for key in values} == values
    assert header["SIMPLE"] is True
    assert "END" not in header


def with_card(key: str, value: str) -> bytes:
    return encode(AAA=5, BBB="x").replace(b"AAA     = %20d" % 5, f"{key:8}= {value:>20}".encode(), 1)


def test_an_odd_card_hides_no_other():
    header = read_primary(io.BytesIO(with_card("AAA", "(?,!)")))
    assert "AAA" not in header
    assert header["BBB"] == "x"


def test_exponents_may_be_written_with_a_d():
    assert read_primary(io.BytesIO(with_card("AAA", "1.5D3")))["AAA"] == 1500.0
