# SPDX-License-Identifier: BSD-3-Clause
"""``ppctl web``: which processes serve a page, and what is said where none does."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ppdaemon.ctl import cli, webpage
from ppdaemon.web import app

HOST = "node7"


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (
            "/opt/ppdaemon/bin/python /opt/ppdaemon/bin/ppweb --listen 127.0.0.1:8080",
            "http://127.0.0.1:8080/",
        ),
        ("/opt/ppdaemon/bin/python3 -m ppdaemon.web.app --socket /run/x", "http://127.0.0.1:8080/"),
        ("python ppweb --listen=0.0.0.0:81 --token-file /run/token", "http://node7:81/"),
        ("python ppweb --listen [::1]:8080", "http://[::1]:8080/"),
        ("ppweb --listen [::]:8080", "http://node7:8080/"),
        ("/bin/sh -c exec ppweb", None),
        ("vim doc/ppweb.rst", None),
        ("less ppweb", None),
        ("", None),
    ],
)
def test_a_page_is_that_of_a_process_that_serves_it(command: str, url: str | None) -> None:
    found = list(webpage.pages([(12, command.split())], HOST))
    assert found == ([] if url is None else [webpage.WebPage(12, url)])


def test_the_default_address_is_that_of_ppweb() -> None:
    (listen,) = (option for option in app.command.params if option.name == "listen")
    assert listen.default == webpage.LISTEN


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_url_is_printed_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webpage, "_processes", lambda: iter([(12, ["ppweb", "--listen", "127.0.0.1:90"])]))
    monkeypatch.setattr(webpage.webbrowser, "open", opened.append)
    assert run("web") == 0
    assert run("web", "--open") == 0
    printed = capsys.readouterr()
    assert printed.out == "http://127.0.0.1:90/\n" * 2
    assert printed.err.splitlines() == ["ppctl: ppweb runs, process 12"] * 2
    assert opened == ["http://127.0.0.1:90/"]


def test_without_a_page_it_is_said_how_to_start_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(webpage, "_processes", lambda: iter([(1, ["init"])]))
    assert run("web") == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "systemctl enable --now ppweb" in printed.err
    assert "ppctl web --run" in printed.err


def test_this_process_is_no_page() -> None:
    assert os.getpid() not in [page.pid for page in webpage.pages(webpage._processes(), HOST)]


def test_ppweb_is_run_for_the_same_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[Sequence[str]] = []

    class Started(Exception):
        pass

    def execv(path: str, arguments: Sequence[str]) -> None:
        started.append(arguments)
        raise Started

    monkeypatch.setattr(webpage.os, "execv", execv)
    run("--socket", str(tmp_path / "s"), "web", "--run", "--", "--listen", "127.0.0.1:1")
    options = [f"--socket={tmp_path / 's'}", "--listen", "127.0.0.1:1"]
    assert started == [[sys.executable, "-m", "ppdaemon.web.app", *options]]
    app.command.make_context("ppweb", list(started[0][3:]))
    assert run("web", "--listen", "127.0.0.1:1") == 64
