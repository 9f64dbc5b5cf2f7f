# SPDX-License-Identifier: BSD-3-Clause
"""Programs of Debian for tests, unpacked below ``build/``; nothing is installed or started by it."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from once import locked

BUILD = Path(__file__).parents[1] / "build" / "debian"
DOWNLOAD_S = 120.0
END_S = 60.0


@dataclass(frozen=True)
class DebianPrograms:
    """The files of packages and of those that they need, below one folder."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment in which programs find each other and their libraries."""
        libraries = {
            str(path.parent) for folder in ("usr/lib", "lib") for path in self.root.glob(f"{folder}/**/*.so*")
        }
        folders = [self.root / folder for folder in ("usr/sbin", "usr/bin", "sbin", "bin")]
        path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
        return os.environ | {"PATH": path, "LD_LIBRARY_PATH": os.pathsep.join(sorted(libraries))}

    def program(self, name: str) -> str:
        """Return the path of a program, also of one that this machine has already."""
        found = shutil.which(name, path=self.environment["PATH"])
        assert found, f"no {name} below {self.root}"
        return found


def unpacked(*packages: str) -> DebianPrograms:
    """Give the programs of packages; skip where they cannot be downloaded."""
    BUILD.mkdir(parents=True, exist_ok=True)
    root = BUILD / "-".join(packages)
    with locked(BUILD / "lock"):
        if not root.exists():
            partial = root.with_name(f"{root.name}.part")
            shutil.rmtree(partial, ignore_errors=True)  # half made by one that was killed
            try:
                _download(packages, partial / "archives")
                for archive in sorted((partial / "archives").glob("*.deb")):
                    _run("dpkg-deb", "--extract", archive, partial / "root")
            except (OSError, subprocess.SubprocessError) as error:
                words = getattr(error, "stderr", None) or str(error)
                pytest.skip(f"packages {', '.join(packages)} of Debian are not to be had: {words.strip()}")
            (partial / "root").rename(root)
            shutil.rmtree(partial)
    return DebianPrograms(root)


@contextmanager
def running_program(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a program that stays in the foreground, in the folder of its log, and end it."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environment),
            cwd=log.parent,
        )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        finally:
            process.kill()
            process.wait()


def _download(packages: Sequence[str], folder: Path) -> None:
    """Download packages with all that they need and this machine lacks."""
    (folder / "partial").mkdir(parents=True)
    options = ("-o", f"Dir::Cache::archives={folder}", "-o", "Debug::NoLocking=1")
    command = ("apt-get", "-y", "-qq", *options, "--no-install-recommends", "--download-only", "--reinstall")
    try:
        _run(*command, "install", *packages)
    except subprocess.CalledProcessError:
        # A new machine has no lists of packages.
        _run("apt-get", "-qq", "update")
        _run(*command, "install", *packages)


def _run(*command: object) -> None:
    arguments = [str(word) for word in command]
    subprocess.run(arguments, check=True, capture_output=True, text=True, timeout=DOWNLOAD_S)
