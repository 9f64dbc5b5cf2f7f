# SPDX-License-Identifier: BSD-3-Clause
"""Folders and files that other users can neither change nor replace.

Their modes do not depend on the umask. Symbolic links are not followed: what a daemon deletes
behind a link may belong to somebody else.
"""

import contextlib
import os
import pwd
import stat
from pathlib import Path

from ppdaemon.errors import StateUnusable
from ppdaemon.states import ExitCode

__all__ = (
    "UnsafePath",
    "check_path",
    "check_shared_folder",
    "check_socket_folder",
    "make_folder",
    "open_private",
    "user_name",
    "write_private",
)

FOLDER_MODE = 0o750
"""The group may read, such as for backups of the state folder; others may not even list names."""
FILE_MODE = 0o640
"""For files without credentials, in a folder of the daemon."""
SECRET_MODE = 0o600
"""For files with credentials or an environment."""


class UnsafePath(StateUnusable):
    """Another user can change or replace a folder of the program, or a link leads to it."""

    def __init__(self, text: str, exit_code: ExitCode = ExitCode.PERMISSION):
        super().__init__(text)
        self.exit_code = exit_code


def check_path(path: Path) -> None:
    """Raise `UnsafePath` if an absolute path leads through a symbolic link, or through a folder in
    which every user can rename what is in it. What does not exist yet is not checked.
    """
    for part in (*reversed(path.parents), path):
        try:
            mode = part.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISLNK(mode):
            raise UnsafePath(
                f"{part} is a symbolic link, which ppdaemon does not follow; write {os.path.realpath(path)} "
                f"instead of {path}",
                ExitCode.CONFIG,
            )
        if part != path and mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise UnsafePath(
                f"every user can replace {path}, because all may write to {part}; chmod o-w {part}"
            )


def make_folder(path: Path) -> None:
    """Create a folder of this program, or take an existing one, which other users then cannot read.

    Missing folders above it are created, too. Raises `UnsafePath` if the folder belongs to another
    user or others may write to it, and OSError if it cannot be created.
    """
    check_path(path)
    if not path.parent.exists():
        make_folder(path.parent)
    created = False
    with contextlib.suppress(FileExistsError):
        path.mkdir(0o700)
        created = True
    # By descriptor: what is checked is what is changed.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        _check_owner(path, found)
        mode = FOLDER_MODE if created else found.st_mode & (stat.S_ISGID | FOLDER_MODE)
        if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


def check_socket_folder(folder: Path) -> None:
    """Create the folder of a unix socket, open for all users, or check the existing one. Raises as
    `make_folder` does.
    """
    check_path(folder / "socket")
    if not folder.exists():
        make_folder(folder)
        folder.chmod(0o755)  # the users of the socket may have no group in common
    check_shared_folder(folder)


def check_shared_folder(folder: Path) -> None:
    """Raise `UnsafePath` if another user can replace what is in an existing folder. One such as /tmp, in
    which nobody can replace the files of others, is accepted.
    """
    found = folder.stat()
    if not (found.st_uid == 0 and found.st_mode & stat.S_ISVTX):
        _check_owner(folder, found)


def _check_owner(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise UnsafePath(
            f"{path} belongs to user {user_name(found.st_uid)}, but this program runs as user "
            f"{user_name(os.geteuid())}; move the folder away, or check who has made it and chown it"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafePath(
            f"users other than its owner may write to {path} (mode {stat.S_IMODE(found.st_mode):04o}); "
            f"check its content, then chmod go-w {path}"
        )


def user_name(uid: int) -> str:
    """Return the name of a user, or its number; a query of the user database, which may block."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def open_private(path: str | Path, flags: int, mode: int = FILE_MODE) -> int:
    """Open or create a file that others cannot read; an opener for `open`. Raises OSError, also if
    the file is a symbolic link.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    found = os.fstat(descriptor)
    if stat.S_IMODE(found.st_mode) & ~mode and found.st_uid == os.geteuid():
        os.fchmod(descriptor, found.st_mode & mode)  # of an earlier version, or another program
    return descriptor


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read."""
    descriptor = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, SECRET_MODE)
    with open(descriptor, "w") as file:
        file.write(text)
