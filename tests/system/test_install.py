# SPDX-License-Identifier: BSD-3-Clause
"""``make install`` and ``make uninstall`` on a host that has never had ppdaemon."""

import os
import shutil
from collections.abc import Iterator
from pathlib import PurePosixPath

import pytest
from newhost import PATH, PYTHON, VARIABLES, Host, new_host, what_is_missing

from ppdaemon import __version__
from ppdaemon.ctl.installfiles import all_files
from ppdaemon.ctl.manpages import PROGRAMS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason := what_is_missing()), reason=reason)]


@pytest.fixture(scope="module")
def installed() -> Iterator[tuple[Host, str]]:
    """Return a host after ``make install``, with a strict umask, and what that printed."""
    with new_host() as host:
        before = os.umask(0o077)
        try:
            output = host.make("install")
        finally:
            os.umask(before)
        yield host, output


@pytest.fixture
def host(installed: tuple[Host, str]) -> Host:
    return installed[0]


def test_each_file_is_written_and_readable_by_all(installed: tuple[Host, str]) -> None:
    host, output = installed
    wrote = {line.removeprefix("wrote ") for line in output.splitlines() if line.startswith("wrote ")}
    assert wrote == {f"/{file.path}" for file in all_files(PurePosixPath("/opt/ppdaemon"))}
    for path in wrote:
        mode = "755" if path.startswith("/usr/local/bin/") else "644"
        assert host.run("stat", "-c", "%a %U:%G", path) == f"{mode} root:root\n"
    host.run("setpriv", "--reuid=nobody", "--clear-groups", "cat", *wrote)


def test_the_user_is_made_and_can_run_the_programs(host: Host) -> None:
    assert ":/var/lib/ppdaemon:" in host.run("getent", "passwd", "ppdaemon")
    for program in PROGRAMS:
        user = ("setpriv", "--reuid=ppdaemon", "--regid=ppdaemon", "--clear-groups")
        assert "Usage: " in host.run(*user, f"/opt/ppdaemon/bin/{program}", "--help")
        assert "Usage: " in host.run(*user, program, "--help")


def test_the_limits_of_inotify_are_set(host: Host) -> None:
    assert host.run("cat", "/proc/sys/fs/inotify/max_user_instances") == "1024\n"


def test_nothing_is_enabled_or_started(installed: tuple[Host, str]) -> None:
    host, output = installed
    assert "nothing was started" in output
    assert "systemctl enable --now pprelay" in output
    assert not [path for path in host.tree("/etc/systemd/system") if "ppdaemon" in path or "pprelay" in path]


def test_the_units_are_valid(host: Host) -> None:
    folder = "/usr/local/lib/systemd/system"
    names = ("ppdaemon.service", "pprelay.service", "ppbridge.service", "ppbridge.socket")
    units = [f"{folder}/{name}" for name in (*names, "run-ppramdisk.mount")]
    assert host.run("systemd-analyze", "verify", *units) == ""


@pytest.mark.parametrize("program", ["pprelay", "ppbridge"])
def test_the_examples_of_relay_and_bridge_can_be_used(host: Host, program: str) -> None:
    checked = host.run(program, "check-config", "--config", f"/etc/ppdaemon/{program}.yaml")
    assert "valid" in checked


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.skipif(shutil.which("groff") is None, reason="groff not installed")
def test_man_pages_render_without_a_warning(host: Host, program: str) -> None:
    section = PROGRAMS[program][1]
    page = f"/usr/local/share/man/man{section}/{program}.{section}"
    assert host.run("bash", "-c", f"groff -mandoc -Tutf8 -ww {page} 2>&1 >/dev/null") == ""
    if shutil.which("man"):
        assert host.run("man", "--where", program) == f"{page}\n"


COMPLETED = {
    "ppdaemon": ("che", "check-config"),
    "pprelay": ("che", "check-config"),
    "ppbridge": ("che", "check-config"),
    "ppweb": ("--lis", "--listen"),
    "ppctl": ("vis", "visit visits"),
    "send_visit": ("--can", "--cancel"),
}
"""For each program the beginning of a word, and what completes it."""


@pytest.mark.parametrize("program", PROGRAMS)
def test_bash_completes_the_commands(host: Host, program: str) -> None:
    script = f"/usr/local/share/bash-completion/completions/{program}"
    word, expected = COMPLETED[program]
    complete = f"""
        . {script} && complete -p {program}
        COMP_WORDS=({program} {word}) COMP_CWORD=1
        _{program}_completion {program} && echo "${{COMPREPLY[*]}}"
    """
    host.run("bash", "-n", script)
    definition, found = host.run("bash", "-euc", complete).splitlines()
    assert definition.endswith(f" {program}")
    assert found == expected


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.skipif(shutil.which("fish") is None, reason="fish not installed")
def test_fish_completes_with_the_whole_help(host: Host, program: str) -> None:
    word, expected = COMPLETED[program]
    found = host.run("fish", "-c", f"complete -C '{program} {word}'")
    assert " ".join(line.partition("\t")[0] for line in found.splitlines()) == expected
    if program == "send_visit":
        text = "Right ascension of the boresight, degrees."
        assert host.run("fish", "-c", "complete -C 'send_visit --ra'") == f"--ra\t{text}\n"


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.skipif(
    None in (shutil.which("zsh"), shutil.which("script")), reason="zsh or script not installed"
)
def test_zsh_completes_what_is_typed(host: Host, program: str) -> None:
    word, expected = COMPLETED[program]
    setup = (
        "autoload -Uz compinit && compinit -D -u",
        'show() { print -r -- "<$BUFFER>"; exit }; zle -N show; bindkey "^X" show',
    )
    host.run("sh", "-c", 'printf "%s\\n" "$@" > /root/.zshrc', "sh", *setup)
    # Typed ahead: a completion, and a key that shows the line.
    typed = host.attempt("script", "-qec", "zsh -i", "/dev/null", text=f"{program} {word}\t\x18").stdout
    assert f"<{program} {expected.split()[0]}" in typed


def test_it_can_be_repeated(host: Host) -> None:
    before = host.tree("/etc/ppdaemon", "/usr/local")
    output = host.make("install")
    assert "wrote" not in output
    assert host.tree("/etc/ppdaemon", "/usr/local") == before


def test_a_package_is_made_without_touching_the_host(host: Host) -> None:
    before = host.tree("/etc", "/usr/local", "/var/lib")
    link = host.run("readlink", "/opt/ppdaemon")
    host.make("install", "DESTDIR=/srv/package", "PREFIX=/opt/other")
    package = host.root / "srv" / "package"
    assert host.tree("/etc", "/usr/local", "/var/lib") == before
    assert host.run("readlink", "/opt/ppdaemon") == link
    unit = (package / "usr/local/lib/systemd/system/ppdaemon.service").read_text()
    assert "ExecStart=/opt/other/bin/ppdaemon run" in unit
    script = package / "opt" / "other" / "bin" / "ppctl"
    assert script.read_text().startswith(f"#!/opt/other-{__version__}/bin/python")
    host.make("uninstall", "DESTDIR=/srv/package", "PREFIX=/opt/other")
    assert [path for path in package.rglob("*") if not path.is_dir()] == []


def test_an_upgrade_is_rolled_back_and_all_is_removed() -> None:
    with new_host() as host:
        stock = host.tree("/usr/local", "/opt") - {"/opt/ppdaemon"}
        host.make("install")
        config = "/etc/ppdaemon/ppdaemon.yaml"
        host.run("sed", "-i", "s/^  name: .*/  name: edited/", config)
        edited = host.run("cat", config)

        for path, old, new in (
            ("ppdaemon/__init__.py", __version__, "9.0"),
            ("etc/ppdaemon.yaml", "# ", "# new "),
            ("systemd/pprelay.service", "RestartSec=1", "RestartSec=9"),
        ):
            file = host.root / "srv" / "checkout" / path
            file.write_text(file.read_text().replace(old, new, 1))
        output = host.make("install")
        assert f"left {config}, which was changed here; the new version is {config}.new" in output
        assert host.run("cat", config) == edited
        assert "9.0" in host.run("ppctl", "--version")
        relay = "/usr/local/lib/systemd/system/pprelay.service"
        assert "RestartSec=9" in host.run("cat", relay)

        host.run("ln", "-sfnT", f"ppdaemon-{__version__}", "/opt/ppdaemon")
        host.run("ppctl", "install-files", "/", "--prefix", "/opt/ppdaemon")
        assert __version__ in host.run("ppctl", "--version")
        assert "RestartSec=1\n" in host.run("cat", relay)
        assert host.run("cat", config) == edited

        host.run("systemctl", "--root=/", "enable", "pprelay")
        assert "pprelay is enabled or runs" in host.attempt("make", "uninstall").stdout
        host.run("systemctl", "--root=/", "disable", "pprelay")
        host.make("uninstall")
        assert host.tree("/usr/local", "/opt") == stock
        assert host.tree("/etc/ppdaemon") == {config}
        host.make("uninstall")  # may be repeated


def test_each_refusal_has_its_reason(host: Host) -> None:
    wrong = host.attempt("make", "install", "PREFIX=opt")
    assert "opt is not an absolute path" in wrong.stdout
    host.run("mkdir", "-p", "/opt/folder")
    wrong = host.attempt("make", "install", "PREFIX=/opt/folder")
    assert "is not a link to a version" in wrong.stdout
    user = ("setpriv", "--reuid=nobody", "--clear-groups")
    assert "needs root" in host.attempt(*user, "tools/install.sh", "install").stdout


def test_a_step_that_fails_stops_the_installation(host: Host) -> None:
    program = host.root / "srv" / "bin" / "systemd-sysusers"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    failed = host.attempt("env", f"PATH=/srv/bin:{PATH}", "make", "install", *VARIABLES)
    assert failed.returncode != 0
    assert failed.stdout.splitlines()[-2].endswith("this step failed: systemd-sysusers ppdaemon.conf")


def test_a_python_that_the_services_cannot_read_is_refused(host: Host) -> None:
    host.run("mkdir", "/home/python")
    host.run("mount", "--bind", "/opt/python", "/home/python")
    refused = host.attempt("make", "install", f"PYTHON=/home/python/bin/{PYTHON}", "PREFIX=/opt/refused")
    assert "the services cannot read the Python in /home/python" in refused.stdout
    assert host.tree("/opt") & {"/opt/refused"} == set()
