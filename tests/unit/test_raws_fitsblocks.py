# SPDX-License-Identifier: BSD-3-Clause
"""The outer structure of FITS files, against files that astropy writes."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st

from ppdaemon.raws.fitsblocks import read_detector_header, read_header, structure


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


CASES = Path(__file__).parents[1] / "data" / "raws"
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
    with fits.open(io.BytesIO(RAW), disable_image_compression=True) as hdus:
        units = [hdu.fileinfo() | {"size": hdu.size} for hdu in hdus]
    primary_cards = RAW.index(b"END".ljust(80))
    # Padding may be missing: all pixels up to there are in the file.
    complete = [range(primary_cards + 3, 2881)]
    complete += [
        range(unit["datLoc"] + unit["size"], unit["datLoc"] + unit["datSpan"] + 1) for unit in units[1:]
    ]
    assert found.whole is any(length in lengths for lengths in complete)
    assert bool(found.problem) is not found.whole
    assert bool(found.warning) is (found.whole and length % 2880 != 0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"\0" * 5760, "not a header"),
        (b"hello", "not a header"),
        (RAW + b"\0" * 2880 + RAW[2880:], "another HDU after them"),
        (RAW + b"XTENSI", "ends within a header"),
        (RAW + b"XTENSION= 'IMAGE   '".ljust(80), "ends within a header"),
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


@pytest.mark.parametrize("cards", [1, 30, 31, 32, 67, 103])
def test_the_header_ends_at_the_card_end_wherever_it_is(cards):
    # What begins like END is another card, in the first block and in later ones.
    keys = {f"END{number}": number for number in range(cards)}
    content = encode(**keys).replace(b"END0    =", b"END     x", 1)
    header = read_header(io.BytesIO(content))
    assert parse(content).whole
    assert all(header[key] == value for key, value in keys.items() if value)


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
        read_header(io.BytesIO(content))


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
    header = read_header(io.BytesIO(pack(encode(*amplifiers(), **values))))
    assert {key: header[key] for key in values} == values
    assert header["SIMPLE"] is True
    assert "END" not in header


def with_card(key: str, value: str) -> bytes:
    return encode(AAA=5, BBB="x").replace(b"AAA     = %20d" % 5, f"{key:8}= {value:>20}".encode(), 1)


def test_an_odd_card_hides_no_other():
    header = read_header(io.BytesIO(with_card("AAA", "(?,!)")))
    assert "AAA" not in header
    assert header["BBB"] == "x"


def test_exponents_may_be_written_with_a_d():
    assert read_header(io.BytesIO(with_card("AAA", "1.5D3")))["AAA"] == 1500.0


def case(name: str) -> io.BytesIO:
    return io.BytesIO((CASES / name).read_bytes())


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("special_records_2880_zeros.fits", "2880 bytes after the last HDU"),
        ("trailing_100_zeros.fits", "100 bytes after the last HDU"),
        ("last_block_not_filled.fits", "the last block is 1760 bytes too short"),
        ("nan_in_a_card_nobody_needs.fits", ""),
        ("fpacked_single_image.fits.fz", ""),
    ],
)
def test_a_file_with_all_its_pixels_is_complete(name, warning):
    found = structure(case(name))
    assert (found.whole, found.problem, found.warning) == (True, "", warning)
    assert found.data_bytes > 0


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (RAW + b"any text, as 3.5 allows".ljust(5760), "5760 bytes after the last HDU"),
        (gzip.compress(RAW + b"\0" * 2880), "2880 bytes after the last HDU"),
        (gzip.compress(RAW) + b"\0" * 512, ""),
        (gzip.compress(RAW) + b"garbage", "bytes after the gzipped data"),
        (encode(fits.ImageHDU())[: -2880 + 8 * 80], "1 bytes"),
    ],
)
def test_other_bytes_after_the_last_hdu_are_a_warning(content, warning):
    if warning == "1 bytes":  # a header that ends at its END card, without padding
        end = content.rindex(b"END") + 3
        content, warning = content[:end], "the last block is"
    found = parse(content)
    assert found.whole, found.problem
    assert warning in found.warning
    assert bool(warning) is bool(found.warning)


def test_a_gzipped_file_with_a_wrong_checksum_is_not_complete():
    packed = gzip.compress(RAW)
    assert not parse(packed[:-8] + b"\0" * 8).whole


def test_keywords_of_a_single_compressed_image_are_in_its_extension():
    header = read_header(case("fpacked_single_image.fits.fz"))
    assert header["GROUPID"] == "2026-11-28T20:16:03.034"
    assert (header["SEQNUM"], header["RAFTBAY"]) == (2, "R22")
    assert (header["BITPIX"], header["NAXIS"]) == (8, 0)
    assert not header.keys() & {"ZBITPIX", "TFORM1", "XTENSION"}


def test_keywords_come_from_the_first_image_that_has_them():
    def image(**keys: object) -> fits.ImageHDU:
        hdu = fits.ImageHDU(np.zeros((2, 2), dtype=np.int16))
        hdu.header.update(keys)
        return hdu

    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1])])
    table.header["GROUPID"] = "of a table"
    content = encode(
        table,
        image(SEQNUM=7),
        image(GROUPID="second", SEQNUM=8),
        image(GROUPID="third"),
        INSTRUME="Cam",
        RA=None,
    )
    header = read_header(io.BytesIO(content))
    assert (header["INSTRUME"], header["SEQNUM"], header["GROUPID"]) == ("Cam", 7, "second")
    assert read_header(io.BytesIO(gzip.compress(content)), until="GROUPID")["GROUPID"] == "second"
    assert "GROUPID" not in read_header(io.BytesIO(content), until="SEQNUM")
    # A file that ends within its extensions has the keywords before.
    assert read_header(io.BytesIO(content[: 2880 * 3]))["INSTRUME"] == "Cam"


def test_a_card_that_cannot_be_parsed_counts_as_missing():
    header = read_header(case("nan_in_a_card_nobody_needs.fits"))
    assert "AIRTEMP" not in header
    assert header["GROUPID"] == "2026-11-28T20:25:49.223"
    for value in ("NaN", "-Inf", "1E999", "1_000", "(1.0, 2.0)", "'no end", "0x10", "'M31\0\0 '", "'a\tb'"):
        assert "AAA" not in read_header(io.BytesIO(with_card("AAA", value))), value


def test_a_text_may_run_over_several_cards():
    group = read_header(case("groupid_over_continue_cards.fits"))["GROUPID"]
    with fits.open(CASES / "groupid_over_continue_cards.fits") as hdus:
        assert group == hdus[0].header["GROUPID"]
    assert isinstance(group, str)
    assert len(group) > 80
    long = "it's " * 60 + "&"
    values = {"GROUPID": "x" * 300 + "#1", "NEXT": 1, "LONG": long, "AMP": "ends in &", "LAST": 2}
    content = encode(**values)
    header = read_header(io.BytesIO(content))
    assert {key: header[key] for key in values} == values
    broken = read_header(io.BytesIO(content.replace(b"CONTINUE  '", b"CONTINUE   ", 1)))
    assert "GROUPID" not in broken, "a part of a text is another text"
    assert broken["LAST"] == 2
    halved = read_header(io.BytesIO(content.replace(b"x&'", b"'&'", 1)))
    assert "GROUPID" not in halved, "a doubled quote is divided"


def test_hierarchical_keywords_are_read_as_astropy_reads_them():
    with pytest.warns(fits.verify.VerifyWarning, match="HIERARCH"):
        content = encode(**{"ESO DET ID": 5})
    assert read_header(io.BytesIO(content))["ESO DET ID"] == 5


# --- several detectors in one file ---------------------------------------------


def of_detector(value: object, *, compressed: bool = False, **keys: object) -> fits.ImageHDU:
    pixels = np.zeros((4, 5), dtype=np.int16)
    hdu = fits.CompImageHDU(pixels) if compressed else fits.ImageHDU(pixels)
    for key, each in {"CCDNUM": value, **keys}.items():
        hdu.header[key] = each
    return hdu


def detector_header(content: bytes, detector: int, keyword: str = "CCDNUM") -> dict[str, object]:
    return read_detector_header(io.BytesIO(content), keyword, detector)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_header_of_a_detector_is_that_of_its_hdu(compressed, pack):
    hdus = [
        of_detector(number, compressed=compressed, GAINA=number / 10, OBJECT="own") for number in (62, 1, 7)
    ]
    content = pack(encode(*hdus, OBJECT="primary", FILTER="r"))
    for number in (1, 7, 62):
        header = detector_header(content, number)
        assert (header["CCDNUM"], header["GAINA"], header["OBJECT"], header["FILTER"]) == (
            number,
            number / 10,
            "own",
            "r",
        )
        assert header["NAXIS"] == 0, "the structure is that of the primary HDU"


def test_the_first_of_several_hdus_of_a_detector_is_read():
    content = encode(of_detector(1, AMP="A"), of_detector(1, AMP="B"))
    assert detector_header(content, 1)["AMP"] == "A"


@pytest.mark.parametrize(
    ("name", "found"), [("ccd07", 7), ("CCD_007", 7), ("7", 7), ("N7a", None), ("seven", None)]
)
def test_a_text_ends_in_the_number(name, found):
    content = encode(fits.ImageHDU(np.zeros((2, 2)), name=name))
    if found is not None:
        assert detector_header(content, found, "EXTNAME")["EXTNAME"] == name.upper()
        return
    with pytest.raises(ValueError, match="no image HDU has EXTNAME 7"):
        detector_header(content, 7, "EXTNAME")


def test_a_detector_without_its_image_has_no_header():
    empty = fits.ImageHDU()
    empty.header["CCDNUM"] = 2
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.zeros(3))])
    table.header["CCDNUM"] = 3
    content = encode(of_detector(1), empty, table, of_detector(True), CCDNUM=4)
    for number, reason in (
        (2, "HDU 3, with CCDNUM 2, has no data"),
        (3, "no image HDU has CCDNUM 3"),
        (4, "no image HDU has CCDNUM 4"),
    ):
        with pytest.raises(ValueError, match=reason):
            detector_header(content, number)
    assert detector_header(content, 1)["CCDNUM"] == 1


def test_special_records_are_no_hdu_of_a_detector():
    content = encode(of_detector(1)) + b"special" * 500
    with pytest.raises(ValueError, match="no image HDU has CCDNUM 2"):
        detector_header(content, 2)
    assert detector_header(content, 1)["CCDNUM"] == 1


def test_what_is_not_fits_has_no_detector():
    with pytest.raises(ValueError, match="not a complete FITS file"):
        detector_header(b"text", 1)
