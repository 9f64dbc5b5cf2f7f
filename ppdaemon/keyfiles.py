# SPDX-License-Identifier: BSD-3-Clause
"""Files with the keys of CURVE, in the format of `zmq.auth`.

A secret key is refused if another user may have read it, a public one if another user may have
replaced it.
"""

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ppdaemon.errors import PPDaemonError
from ppdaemon.privatefiles import user_name
from ppdaemon.states import ExitCode

__all__ = (
    "PUBLIC_SUFFIX",
    "SECRET_SUFFIX",
    "KeyPair",
    "UnusableKey",
    "read_allow_list",
    "read_key_pair",
    "read_public_key",
    "write_key_pair",
)

PUBLIC_SUFFIX = ".key"
SECRET_SUFFIX = ".key_secret"
"""Endings of files as `zmq.auth.create_certificates` names them."""
MAX_BYTES = 10_000
"""A key file has some 500."""
READABLE = stat.S_IRWXG | stat.S_IRWXO
WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_KEY = re.compile(
    rb"""^[ \t]*(public|secret)-key[ \t]*=[ \t]*"([\w.:+=^!/*?&<>()\[\]{}@%$#-]{40})"[ \t]*$""", re.M
)


class UnusableKey(PPDaemonError, ValueError):
    """A file has no key, or other users may read or change it."""

    exit_code = ExitCode.CONFIG


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The two keys of one program, as text of 40 characters (Z85)."""

    public: bytes
    secret: bytes = field(repr=False)


def read_key_pair(path: Path) -> KeyPair:
    """Read a file that only its owner may read. Raises `UnusableKey`."""
    keys = _read(path, READABLE, "users other than its owner may read it", "600")
    if {"public", "secret"} - keys.keys():
        raise UnusableKey(f"{path} has no pair of keys; make one with ppctl keygen")
    return KeyPair(keys["public"], keys["secret"])


def read_public_key(path: Path) -> bytes:
    """Read a file that only its owner may change. Raises `UnusableKey`."""
    keys = _read(path, WRITABLE, "users other than its owner may write to it", "go-w")
    if "secret" in keys:
        raise UnusableKey(
            f"{path} has a secret key; it belongs on one host only: use its {PUBLIC_SUFFIX} file"
        )
    if "public" not in keys:
        raise UnusableKey(f"{path} has no public key")
    return keys["public"]


def read_allow_list(folder: Path) -> Mapping[str, str]:
    """Return the name of each public key in a folder: its file's name without the suffix.

    Raises `UnusableKey` if the folder, or one file, cannot be used.
    """
    try:
        _check(folder, folder.stat(), WRITABLE, "users other than its owner may write to it", "go-w")
        files = sorted(path for path in folder.iterdir() if path.suffix == PUBLIC_SUFFIX)
    except OSError as error:
        raise UnusableKey(f"{folder}: {error.strerror}") from None
    names: dict[str, str] = {}
    for path in files:
        key = read_public_key(path).decode()
        if key in names:
            raise UnusableKey(f"{path} has the same key as {names[key]}{PUBLIC_SUFFIX}: delete one of them")
        names[key] = path.stem
    return names


def write_key_pair(folder: Path, name: str, keys: KeyPair) -> tuple[Path, Path]:
    """Write both files, and return their paths. Raises OSError, also if one of them exists."""
    secret, public = folder / f"{name}{SECRET_SUFFIX}", folder / f"{name}{PUBLIC_SUFFIX}"
    lines = f'#   Keys of {name} for CURVE of ZeroMQ.\n\ncurve\n    public-key = "{keys.public.decode()}"\n'
    if public.exists():  # before the secret file is made
        raise FileExistsError(0, "File exists", str(public))
    for path, mode, text in (
        (secret, 0o600, f'{lines}    secret-key = "{keys.secret.decode()}"\n'),
        (public, 0o644, lines),
    ):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
    return secret, public


def _read(path: Path, forbidden: int, problem: str, chmod: str) -> dict[str, bytes]:
    try:
        # O_NONBLOCK: a named pipe must not block the program.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            # By descriptor: what is checked is what is read.
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UnusableKey(f"{path} is not a file")
            _check(path, found, forbidden, problem, chmod)
            return {kind.decode(): key for kind, key in _KEY.findall(file.read(MAX_BYTES))}
    except OSError as error:
        raise UnusableKey(f"{path}: {error.strerror}") from None


def _check(path: Path, found: os.stat_result, forbidden: int, problem: str, chmod: str) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        owner, this = user_name(found.st_uid), user_name(os.geteuid())
        raise UnusableKey(
            f"{path} belongs to user {owner}, but this program runs as user {this}; chown it, or run the "
            f"program as {owner}"
        )
    if found.st_mode & forbidden:
        raise UnusableKey(f"{path}: {problem} (mode {stat.S_IMODE(found.st_mode):04o}); chmod {chmod} {path}")
