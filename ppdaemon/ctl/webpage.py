# SPDX-License-Identifier: BSD-3-Clause
"""The command ``ppctl web``: where the web page of this host is, and how it is started."""

import importlib.util
import os
import socket
import sys
import webbrowser
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple

import click

from ppdaemon.states import ExitCode
from ppdaemon.terminal import plain

__all__ = ("WebPage", "pages", "web")

MODULE = "ppdaemon.web.app"
LISTEN = "127.0.0.1:8080"
"""Default address of ``ppweb``."""
EVERYWHERE = ("0.0.0.0", "[::]")


class WebPage(NamedTuple):
    """A page that is served on this host."""

    pid: int
    url: str


def pages(processes: Iterable[tuple[int, Sequence[str]]], host: str) -> Iterator[WebPage]:
    """Yield the page of each ``ppweb`` among processes with their command lines; `host` is the name of
    this one.
    """
    for pid, words in processes:
        names = [PurePath(word).name for word in words if not word.startswith("-")]
        if names and names[0].startswith("python"):
            del names[0]
        if not names or names[0] not in ("ppweb", MODULE):
            continue
        listen = LISTEN
        for word, after in zip(words, [*words[1:], ""], strict=True):
            if word == "--listen" or word.startswith("--listen="):
                listen = word.partition("=")[2] or after
        address, _, port = listen.rpartition(":")
        yield WebPage(pid, f"http://{host if address in EVERYWHERE else address}:{port}/")


def _processes() -> Iterator[tuple[int, Sequence[str]]]:
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        yield process.pid, process.info["cmdline"] or ()


@click.command("web")
@click.option("--open", "opening", is_flag=True, help="Open the page in a browser.")
@click.option("--run", "running", is_flag=True, help="Serve the page until Ctrl-C, with ARGS of ppweb.")
@click.argument("args", nargs=-1)
@click.pass_context
def web(context: click.Context, opening: bool, running: bool, args: Sequence[str]) -> None:
    """Print the URL of the web page of this host, or how to start ppweb.

    With --run it is started here, for the daemon of ppctl's --socket or --config;
    "ppctl web --run -- --listen 127.0.0.1:8090" passes an option to it.

    Exit code: 0 if ppweb runs, 1 if it does not.
    """
    if args and not running:
        raise click.UsageError("ARGS are those of ppweb: add --run")
    if running:
        given = context.find_root().params
        options = [f"--{name}={given[key]}" for name, key in _PASSED.items() if given[key]]
        os.execv(sys.executable, [sys.executable, "-m", MODULE, *options, *args])
    found = list(pages(_processes(), socket.gethostname()))
    for page in found:
        click.echo(plain(page.url))
        click.echo(f"ppctl: ppweb runs, process {page.pid}", err=True)
    if not found:
        click.echo("ppctl: ppweb does not run on this host; systemctl enable --now ppweb, or", err=True)
        click.echo("ppctl: ppctl web --run, which serves the page until Ctrl-C", err=True)
        if importlib.util.find_spec("aiohttp") is None:
            click.echo("ppctl: it needs aiohttp: pip install 'ppdaemon[web]'", err=True)
        raise click.exceptions.Exit(ExitCode.FAILED)
    if opening:
        webbrowser.open(found[0].url)


_PASSED = {"socket": "socket_path", "config": "config"}
"""Options of ``ppctl`` that ``ppweb`` has, too, with the names of their values."""
