# SPDX-License-Identifier: BSD-3-Clause
"""The command ``ppctl install-files``: the files of an installation that are outside its environment.

Units, configuration examples, man pages and completion. A record of what was
installed makes repeated calls, upgrades and the removal safe: what was changed
since then belongs to the site and is neither overwritten nor deleted.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path, PurePosixPath

import click

import ppdaemon
from ppdaemon.ctl.manpages import PROGRAMS, completion, man_page
from ppdaemon.errors import StateUnusable
from ppdaemon.terminal import plain

__all__ = ("Decision", "Installation", "InstalledFile", "all_files", "decide", "install_files")

RECORD = "usr/local/share/ppdaemon/installed.json"
CONFIGURATION = "etc/"
NEW = ".new"
DANGLING = "dangling link"
"""In the place of a digest."""

# /usr/local/lib is for what a site installs outside of packages: systemd reads it, and a file of
# the same name below /etc is preferred, as is a drop-in of `systemctl edit`.
_PLACES = (
    ("ctl/shipped/systemd/*.service", "usr/local/lib/systemd/system"),
    ("ctl/shipped/systemd/*.socket", "usr/local/lib/systemd/system"),
    ("ctl/shipped/systemd/*.mount", "usr/local/lib/systemd/system"),
    ("ctl/shipped/systemd/sysusers.d/*", "usr/local/lib/sysusers.d"),
    ("ctl/shipped/systemd/tmpfiles.d/*", "usr/local/lib/tmpfiles.d"),
    ("ctl/shipped/systemd/sysctl.d/*", "usr/local/lib/sysctl.d"),
    ("ctl/shipped/etc/*.yaml", "etc/ppdaemon"),
    ("ctl/shipped/etc/prometheus/*", "usr/local/share/ppdaemon/prometheus"),
    ("ctl/shipped/etc/grafana/*", "usr/local/share/ppdaemon/grafana"),
    ("ctl/shipped/etc/bps/*", "usr/local/share/ppdaemon/bps"),
    ("ctl/shipped/etc/pacemaker/*", "usr/local/share/ppdaemon/pacemaker"),
    ("ctl/shipped/etc/slurm/*", "usr/local/share/ppdaemon/slurm"),
    ("demo/pipelines/*.yaml", "etc/ppdaemon/pipelines"),
)
"""Files of this package, and the folder below DIR to which they are copied."""

_COMPLETION = {
    "bash": "usr/local/share/bash-completion/completions/{}",
    # Without XDG_DATA_DIRS, as in a login over ssh, fish reads nothing below /usr/local.
    "fish": "etc/fish/completions/{}.fish",
    "zsh": "usr/local/share/zsh/site-functions/_{}",
}
UNIT_PREFIX = "/opt/ppdaemon"
"""The prefix in the units and the batch script as they are shipped."""


@dataclass(frozen=True, slots=True)
class InstalledFile:
    """A file to install; `path` is relative to DIR."""

    path: str
    content: bytes
    mode: int = 0o644

    @property
    def digest(self) -> str:
        """The SHA-256 of the content."""
        return _digest(self.content)


def all_files(prefix: PurePosixPath) -> list[InstalledFile]:
    """Return all files of this version; the programs are in ``bin`` of `prefix`."""
    package = Path(ppdaemon.__file__).parent
    files = []
    for pattern, folder in _PLACES:
        for source in sorted(package.glob(pattern)):
            content = source.read_bytes()
            if source.suffix in (".service", ".sbatch"):
                content = content.replace(f"{UNIT_PREFIX}/bin/".encode(), f"{prefix}/bin/".encode())
            files.append(InstalledFile(f"{folder}/{source.name}", content))
    for program, (_, section, _) in PROGRAMS.items():
        page = f"usr/local/share/man/man{section}/{program}.{section}"
        files.append(InstalledFile(page, man_page(program).encode()))
        for shell, path in _COMPLETION.items():
            files.append(InstalledFile(path.format(program), completion(program, shell).encode()))
        if prefix != PurePosixPath("/usr/local"):  # otherwise it is the program itself
            script = f'#!/bin/sh\nexec {prefix}/bin/{program} "$@"\n'
            files.append(InstalledFile(f"usr/local/bin/{program}", script.encode(), 0o755))
    return files


class Decision(Enum):
    """What happens to one file."""

    WRITE = auto()
    SAME = auto()
    """It is there already."""
    CHANGED = auto()
    """The site changed it, and this version has nothing new for it."""
    BESIDE = auto()
    """The site changed it: the new version is written beside it."""
    DELETED = auto()
    """The site deleted it: it is not written again."""


def decide(file: InstalledFile, found: str | None, recorded: str | None) -> Decision:
    """Return what to do with a file. `found` is the digest on disk, `recorded` that of the last call."""
    if found is None:
        deleted = recorded is not None and file.path.startswith(CONFIGURATION)
        return Decision.DELETED if deleted else Decision.WRITE
    if found == file.digest:
        return Decision.SAME
    if found == recorded:
        return Decision.WRITE
    return Decision.CHANGED if recorded == file.digest else Decision.BESIDE


class Installation:
    """What is installed below a folder. With `dry_run` nothing is written or deleted."""

    def __init__(self, folder: Path, *, dry_run: bool = False):
        self._folder = folder
        self._dry_run = dry_run
        self._record = folder / RECORD
        record = json.loads(self._record.read_bytes()) if self._record.exists() else {}
        self._digests: dict[str, str] = record.get("files", {})
        self._folders: list[str] = record.get("folders", [])

    def install(self, files: Iterable[InstalledFile]) -> Iterator[str]:
        """Write files, delete those of another version, and record them; yield a line for each change."""
        before = self._digests
        self._digests = {}
        for file in files:
            path = self._folder / file.path
            beside = replace(file, path=file.path + NEW)
            match decide(file, self._digest_of(file.path), before.get(file.path)):
                case Decision.WRITE:
                    self._write(file)
                    yield f"wrote {path}"
                case Decision.BESIDE:
                    self._write(beside)
                    self._digests[beside.path] = beside.digest
                    yield f"left {path}, which was changed here; the new version is {path}{NEW}"
                case Decision.CHANGED:
                    if beside.path in before:
                        self._digests[beside.path] = before[beside.path]
                    yield f"left {path}, which was changed here"
                case Decision.DELETED:
                    yield f"left out {path}, which was deleted here"
                case Decision.SAME:
                    pass
            self._digests[file.path] = file.digest
        for name in sorted(before.keys() - self._digests.keys()):
            yield from self._delete(name, before[name])
        if not self._dry_run:
            self._make_folder(self._record.parent)  # first, because its name is in the record
            record = {"files": self._digests, "folders": self._folders}
            part = self._record.with_suffix(".part")  # cut by a full disk, it could not be read any more
            part.write_text(json.dumps(record, indent=1) + "\n")
            part.chmod(0o644)
            part.rename(self._record)

    def remove(self) -> Iterator[str]:
        """Delete what was installed and not changed since; yield a line for each file."""
        for name, digest in self._digests.items():
            yield from self._delete(name, digest)
        if self._dry_run:
            return
        self._record.unlink(missing_ok=True)
        for name in sorted(self._folders, reverse=True):  # inner ones first
            folder = self._folder / name
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _digest_of(self, name: str) -> str | None:
        path = self._folder / name
        if path.exists():
            return _digest(path.read_bytes())
        # A link of the site, to a disk that is not mounted: neither deleted, nor a place to write through.
        return DANGLING if path.is_symlink() else None

    def _write(self, file: InstalledFile) -> None:
        if self._dry_run:
            return
        path = self._folder / file.path
        self._make_folder(path.parent)
        exists = path.exists()
        path.write_bytes(file.content)
        if not exists:  # otherwise the site may have chosen a mode
            path.chmod(file.mode)

    def _make_folder(self, folder: Path) -> None:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir()
            each.chmod(0o755)  # whatever the umask: the services read them as another user
            if each.is_relative_to(self._folder) and each != self._folder:
                self._folders.append(str(each.relative_to(self._folder)))

    def _delete(self, name: str, digest: str) -> Iterator[str]:
        path = self._folder / name
        found = self._digest_of(name)
        if found == digest:
            if not self._dry_run:
                path.unlink()
            yield f"deleted {path}"
        elif found is not None:
            yield f"left {path}, which was changed here"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@click.command("install-files")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--prefix",
    type=click.Path(path_type=PurePosixPath),
    default=sys.prefix,
    show_default="that of this program",
    help="Installed environment: units and commands start the programs in its folder bin.",
)
@click.option("--remove", is_flag=True, help="Delete what was installed below DIR instead.")
@click.option("--dry-run", is_flag=True, help="Only list what would be done.")
def install_files(folder: Path, prefix: PurePosixPath, remove: bool, dry_run: bool) -> None:
    """Install units, example configurations, man pages and completion below DIR.

    DIR is / for this host, or the root folder of a package or an image. Units,
    commands, man pages and completion go to DIR/usr/local, configuration examples to
    DIR/etc/ppdaemon. Nothing is enabled or started.

    A file that was changed since it was installed is left as it is; where this
    version has another one, it is written beside it as NAME.new. With --remove,
    such a file is left too, and so are the state folders and the user.
    """
    if not prefix.is_absolute():
        raise click.UsageError(f"--prefix {prefix}: give an absolute path")
    try:
        installation = Installation(folder, dry_run=dry_run)
        for line in installation.remove() if remove else installation.install(all_files(prefix)):
            click.echo(plain(line))
    except OSError as error:
        raise StateUnusable(f"{error.filename}: {error.strerror}; correct it and run this again") from None
