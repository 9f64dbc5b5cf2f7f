# SPDX-License-Identifier: BSD-3-Clause
"""A host that has never had ppdaemon, for ``make install`` and for the units under a real systemd.

It is a set of namespaces on this machine. Its root folder is a tmpfs. Of this machine it sees /usr, the
interpreter and the packages of the tests, read-only; /etc has some files of it, all other folders are
empty. Its root is an ordinary user here, as in a rootless container, so that nothing done in it can change
this machine: neither files, devices, control groups nor the settings of the kernel.

No index of packages is needed: pip installs this checkout alone, and what it depends on is imported from
the environment of the tests.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from systemd_user import SYSTEMD, Instance

from ppdaemon.testing.waiting import wait_until

ROOT = Path(__file__).parents[2]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Without an index, and without an environment for the build: setuptools is that of the tests.
VARIABLES = (
    f"PYTHON=/opt/python/bin/{PYTHON}",
    "PIPFLAGS=--no-index --no-deps --no-build-isolation --no-compile",
)
NEEDED = (
    "make",
    "unshare",
    "nsenter",
    "pivot_root",
    "setpriv",
    "systemctl",
    "systemd-sysusers",
    "systemd-tmpfiles",
    "systemd-analyze",
)
USERS = 0x10000000
"""The user here that is root there, and 65,535 more. No user of this machine has such a number."""


def what_is_missing(*, boot: bool = False) -> str:
    """Return why there is no such host here, or no systemd in it; empty if there can be one."""
    if os.geteuid() != 0:
        return "needs root for namespaces"
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"{', '.join(missing)} not installed"
    probe = subprocess.run(["unshare", "--mount", "--user", "true"], capture_output=True)
    if probe.returncode != 0:
        return f"no namespaces: {probe.stderr.decode().strip()}"
    if boot and not SYSTEMD.exists():
        return f"{SYSTEMD} not installed"
    try:
        return "" if not boot or os.access(_own_cgroup(), os.W_OK) else f"{_own_cgroup()} is read-only"
    except StopIteration:
        return "no control groups of version 2 are mounted"


def _own_cgroup() -> Path:
    """Return the folder of this process's control group (version 2)."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    mounted = next(fields[1] for fields in mounts if fields[2] == "cgroup2")
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return Path(mounted + next(line for line in lines if line.startswith("0::")).removeprefix("0::"))


# As root of this machine, in a mount namespace that has the new root folder at /mnt. What is mounted before
# the user namespace is entered is locked in it: it stays read-only.
STAGE = """
mount --make-rprivate /
mount -t tmpfs -o mode=755,size=2g tmpfs /mnt
bind() {{ mkdir -p /mnt/$2; mount --bind $1 /mnt/$2; mount -o remount,bind,ro /mnt/$2; }}
bind /usr usr
bind {base} opt/python
bind {site} opt/site
cd {checkout}
mkdir -p /mnt/srv/checkout
cp -a {names} /mnt/srv/checkout
chown -R {users}:{users} /mnt/srv
chown {users}:{users} /mnt /mnt/opt
if [ -n "$cgroup" ]; then echo $$ > $cgroup/cgroup.procs; fi
exec nsenter --user=/proc/$holder/ns/user unshare --mount --pid --fork --ipc --uts --net --cgroup \\
    --kill-child bash -euc "$inside" "$0" "$@"
"""

# As root of the host, until its root folder is /. The limits of inotify belong to the kernel, and are
# replaced by files.
INSIDE = """
mount --make-rprivate /
mount --rbind /mnt /mnt  # its own mount, not a locked one: pivot_root needs that
cd /mnt
for name in bin sbin lib lib32 lib64 libx32; do
    if [ -L /$name ]; then cp -P /$name .; fi  # to /usr
done
mkdir -p dev etc/systemd/system home old opt/deps proc root run srv sys tmp var/lib var/log/journal
chmod 1777 tmp
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/shm dev/pts
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
if [ -n "$cgroup" ]; then mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup; fi
for path in usr/local proc/sys/fs/inotify; do mount -t tmpfs -o mode=755 tmpfs $path; done
mkdir usr/local/bin usr/local/lib usr/local/share
touch proc/sys/fs/inotify/{max_user_watches,max_queued_events,max_user_instances}
for path in opt/site/*; do ln -s /$path opt/deps/; done
rm -f opt/deps/ppdaemon* opt/deps/__editable__* opt/deps/*.pth
for name in alternatives bash_completion.d dbus-1 debian_version groff ld.so.conf ld.so.conf.d login.defs \\
    manpath.config nsswitch.conf os-release pam.d profile; do
    if [ -e /etc/$name ]; then cp -dR --preserve=mode,links /etc/$name etc/; fi
done
echo root:x:0:0:root:/root:/bin/bash > etc/passwd
echo 'nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin' >> etc/passwd
printf 'root:x:0:\\nnogroup:x:65534:\\n' > etc/group
echo 'root:*:19000:0:99999:7:::' > etc/shadow
echo 'root:*::' > etc/gshadow
chmod 640 etc/shadow etc/gshadow
touch etc/fstab etc/machine-id
hostname node1
echo node1 > etc/hostname
echo 127.0.0.1 localhost node1 > etc/hosts
if command -v ip >/dev/null; then ip link set lo up; fi
# Devices, terminals and clocks are not this host's.
for unit in getty.target systemd-{logind,networkd,resolved,timesyncd,udev-trigger,udevd}.service \\
    systemd-udevd-{control,kernel}.socket; do
    ln -s /dev/null etc/systemd/system/$unit
done
ln -s /lib/systemd/system/multi-user.target etc/systemd/system/default.target
pivot_root . old
umount -l /old
rmdir /old
echo /opt/python/lib > /etc/ld.so.conf.d/python.conf  # of a Python that was built for another place
ldconfig
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin "$0" "$@"
"""
CHECKOUT = (
    "Makefile",
    "LICENSE",
    "README.rst",
    "etc",
    "ppdaemon",
    "pyproject.toml",
    "setup.py",
    "systemd",
    "tools",
)


class Host:
    """A host whose process 1 is `pid` here, with a checkout.

    Its root folder is `root` here. Files that are made through it belong to nobody there.
    """

    def __init__(self, pid: int):
        self._inside = ["nsenter", f"--target={pid}", "--all", "env", "--chdir=/srv/checkout"]
        self.root = Path(f"/proc/{pid}/root")

    def run(self, *command: object, **environment: str) -> str:
        """Run a command as root; return its output. Fails with it if the command fails."""
        done = self.attempt(*command, **environment)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def attempt(
        self, *command: object, text: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root, whatever its exit code, with `text` on its standard input."""
        return subprocess.run(
            [*self._inside, *map(str, command)],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            env={
                "PATH": PATH,
                "HOME": "/root",
                "LANG": "C.UTF-8",
                "PYTHONPATH": "/opt/deps",
                **environment,
            },
        )

    def make(self, target: str, *variables: str) -> str:
        return self.run("make", target, *VARIABLES, *variables)

    def tree(self, *folders: str) -> set[str]:
        """Return all files and folders below these."""
        return set(self.run("find", *folders, "-xdev", "-mindepth", "1").split())


@contextmanager
def new_host(program: tuple[object, ...] = ("sleep", "infinity")) -> Iterator[Host]:
    """Make a host whose process 1 is a program; with systemd it has a control group of its own."""
    cgroup = None
    if program[0] == SYSTEMD:
        cgroup = _own_cgroup() / f"ppdaemon-test-{os.getpid()}"
        cgroup.mkdir()
        for path in (".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(cgroup / path, USERS, USERS)
    script = STAGE.format(
        base=sys.base_prefix,
        site=sysconfig.get_path("purelib"),
        checkout=ROOT,
        names=" ".join(CHECKOUT),
        users=USERS,
    )
    with subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE) as holder:
        try:
            wait_until(lambda: psutil.Process(holder.pid).name() == "cat", 40, "a user namespace was made")
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{holder.pid}/{name}").write_text(f"0 {USERS} 65536\n")
            outside = subprocess.Popen(
                ["unshare", "--mount", "bash", "-euc", script, *map(str, program)],
                stdin=subprocess.DEVNULL,
                env={
                    "PATH": PATH,
                    "cgroup": str(cgroup or ""),
                    "holder": str(holder.pid),
                    "inside": INSIDE,
                },
            )
            try:
                yield Host(_wait_for_program(outside, str(program[0])))
            finally:
                outside.kill()
                outside.wait()
        finally:
            holder.kill()
            if cgroup:
                wait_until(lambda: _removed(cgroup), 40, f"nothing runs in {cgroup}")


def _wait_for_program(outside: subprocess.Popen[bytes], program: str) -> int:
    """Return process 1 of the host when it is the program."""

    def started() -> list[int]:
        assert outside.poll() is None, "the host could not be made"
        with suppress(psutil.Error):  # a command of the script has just ended
            children = psutil.Process(outside.pid).children()
            return [child.pid for child in children if child.cmdline()[:1] == [program]]
        return []

    return wait_until(started, 40, "the host has a process 1")[0]


def _removed(cgroup: Path) -> bool:
    try:
        for path, _, _ in cgroup.walk(top_down=False):
            path.rmdir()
    except OSError:  # busy until the kernel has ended the last process
        return False
    return True


@contextmanager
def booted_host() -> Iterator[tuple[Host, Instance]]:
    """Make a host whose process 1 is systemd, and wait until it has booted."""
    with new_host((SYSTEMD, "--system")) as host:
        systemd = Instance(host.attempt, lambda: host.run("journalctl", "--no-pager", "-n", "40"), "--system")
        wait_until(
            lambda: systemd.systemctl("is-system-running") in ("running", "degraded"),
            40,
            lambda: host.attempt("systemctl", "list-jobs").stdout,
        )
        yield host, systemd
