# SPDX-License-Identifier: BSD-3-Clause
"""Small raws: complete FITS files of one byte, and exposures in the layout of a camera."""

import json
from collections.abc import Iterable
from pathlib import Path

from ppdaemon.camera import load_camera
from ppdaemon.clock import Clock, day_obs

__all__ = ("RawWriter", "fits_header", "publish", "small_fits")

BLOCK = 2880


def fits_header(*cards: str) -> bytes:
    """Return a FITS header in whole blocks of 2880 bytes. `cards` have at most 80 characters
    each, and no END.
    """
    text = "".join(f"{card:80}" for card in (*cards, "END"))
    return text.ljust(-(-len(text) // BLOCK) * BLOCK).encode()


def small_fits(*cards: str) -> bytes:
    """Return a complete FITS file with one byte of data: two blocks or more. `cards` are added to
    its header.
    """
    structure = {"SIMPLE": "T", "BITPIX": "8", "NAXIS": "1", "NAXIS1": "1"}
    header = fits_header(*(f"{name:8}= {value:>20}" for name, value in structure.items()), *cards)
    return header + bytes(BLOCK)


class RawWriter:
    """Writes exposures below a raw root, in the layout of LSST cameras.

    Parameters
    ----------
    root : `pathlib.Path`
        Folder that the daemon has as a raw root.
    instrument : `str`, optional
        A camera with a focal-plane table.
    code : `str`, optional
        Prefix of its observation ids.

    Attributes
    ----------
    day : `int`
        The observing day of all exposures, ``YYYYMMDD``: today, since a daemon does not search
        the folders of earlier nights.
    """

    def __init__(self, root: Path, instrument: str = "DemoCam", code: str = "DC"):
        self.root = root
        self.day = day_obs(Clock().tai())
        self._instrument = instrument
        self._code = code
        self._numbers: dict[tuple[str, int | None], int] = {}
        self._names = {number: each.name for number, each in load_camera(instrument).detectors.items()}

    def number(self, group: str, snap: int | None = 1) -> int:
        """Return the sequence number of a visit's snap: the next one if it has none yet."""
        return self._numbers.setdefault((group, snap), max(self._numbers.values(), default=0) + 1)

    def exposure(self, number: int) -> int:
        """Return the exposure id of a sequence number."""
        return self.day * 100_000 + number

    def obsid(self, number: int) -> str:
        """Return the observation id of a sequence number."""
        return f"{self._code}_O_{self.day}_{number:06d}"

    def path(self, number: int, detector: int = 0, suffix: str = ".fits") -> Path:
        """Return the path of a file of an exposure."""
        return self._folder(number) / f"{self.obsid(number)}_{self._names[detector]}{suffix}"

    def land(
        self,
        group: str,
        detectors: Iterable[int] = (0,),
        number: int | None = None,
        *,
        snap: int | None = 1,
        snaps: int | None = 1,
        content: bytes | None = None,
    ) -> list[Path]:
        """Write the raws and sidecars of one exposure, renamed into place.

        Parameters
        ----------
        group : `str`
            Group in the sidecars, which names the visit.
        detectors : `~collections.abc.Iterable` [`int`], optional
            Detectors that are read out.
        number : `int`, optional
            Sequence number within the day; by default that of `number`.
        snap, snaps : `int`, optional
            Index in the visit from 1, and number of exposures; `None` if unknown to the camera.
        content : `bytes`, optional
            Content of each raw, instead of `small_fits`.

        Returns
        -------
        paths : `list` [`pathlib.Path`]
            Paths of the raws, in the order of the detectors.
        """
        if number is None:
            number = self.number(group, snap)
        self._numbers[group, snap] = number
        sidecar = {"OBSID": self.obsid(number), "GROUPID": group, "CURINDEX": snap, "MAXINDEX": snaps}
        sidecar |= {"DAYOBS": str(self.day), "SEQNUM": number, "CONTRLLR": "O", "CAMCODE": self._code}
        data = json.dumps(sidecar).encode()
        self._folder(number).mkdir(parents=True, exist_ok=True)
        paths = []
        for detector in detectors:
            publish(self.path(number, detector, ".json"), data)
            paths.append(self.path(number, detector))
            publish(paths[-1], small_fits() if content is None else content)
        return paths

    def list_detectors(self, detectors: Iterable[int], number: int = 1) -> None:
        """Write the list of the detectors of an exposure."""
        self._folder(number).mkdir(parents=True, exist_ok=True)
        names = {self._names[detector]: "SCIENCE" for detector in detectors}
        path = self._folder(number) / f"{self.obsid(number)}_expectedSensors.json"
        publish(path, json.dumps({"expectedSensors": names}).encode())

    def _folder(self, number: int) -> Path:
        return self.root / self._instrument / str(self.day) / self.obsid(number)


def publish(path: Path, content: bytes) -> None:
    """Write a file under another name and rename it into place."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.rename(path)
