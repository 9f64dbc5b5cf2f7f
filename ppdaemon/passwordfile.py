# SPDX-License-Identifier: BSD-3-Clause
"""Files with a password for another server."""

from pathlib import Path

__all__ = ("read_password",)


def read_password(path: Path) -> str:
    """Return the password in a file, without the end of its line.

    Raises `ValueError` if it cannot be read, other users can read it, or it has not exactly one line.
    """
    try:
        if path.stat().st_mode & 0o007:
            raise ValueError(f"{path}: other users can read the password: chmod o= {path}")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    password = text.removesuffix("\n").removesuffix("\r")
    if not password or "\n" in password:
        raise ValueError(f"{path}: a file with a password has one line")
    return password
