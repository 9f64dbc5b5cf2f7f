# SPDX-License-Identifier: BSD-3-Clause
"""Answers the requests of browsers."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from ppdaemon.camera import load_camera
from ppdaemon.clock import TAI_MINUS_UTC_S, Clock, day_obs
from ppdaemon.ctl.client import Daemon
from ppdaemon.ctl.log import LogLine, visit_lines
from ppdaemon.ctl.selection import parse_night
from ppdaemon.errors import ConfigError, Denied, NotFound, PPDaemonError, Unavailable
from ppdaemon.markup import Html
from ppdaemon.night.page import CHARTS_CSS
from ppdaemon.night.reading import read_night
from ppdaemon.reports import VisitRow
from ppdaemon.web import pages
from ppdaemon.web.access import COOKIE, Access
from ppdaemon.web.alerts import AlertWatch
from ppdaemon.web.follower import Follower
from ppdaemon.web.hub import Hub, TooManyViewers
from ppdaemon.web.links import night_link
from ppdaemon.web.model import LiveModel

__all__ = ("make_app",)

_LOG = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
DETECTOR_ROWS = 100
WRITE_S = 10.0
"""A viewer that does not read an event for this long is disconnected."""
KEEPALIVE_S = 15.0
"""Proxies close connections on which nothing is sent for 60 s."""
LOG_READERS = 2
"""Logs that are read at once: the journal of systemd may take 10 s, and other pages need threads, too."""
LOGIN_PAUSE_S = 1.0
"""After a wrong token, and one at a time: nobody can try many."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none';"
    " frame-ancestors 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # addresses have names of visits
    "Cache-Control": "no-store",
}

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Site:
    """The handlers of all addresses."""

    daemon: Daemon
    access: Access
    hub: Hub
    login_lock: asyncio.Lock
    night_lock: asyncio.Lock
    reading_logs: asyncio.Semaphore
    alerts: AlertWatch | None

    async def live(self, request: web.Request) -> web.Response:
        return _html(pages.live_page(wall="wall" in request.query, alerts=self.alerts is not None))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Send the whole page, then its changes, until the viewer leaves."""
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        try:
            with self.hub.viewing() as viewer:
                await response.prepare(request)
                while True:
                    try:
                        event = await asyncio.wait_for(viewer.take(), KEEPALIVE_S)
                    except TimeoutError:
                        event = b":\n\n"
                    if event is None:
                        break
                    await asyncio.wait_for(response.write(event), WRITE_S)
        except TooManyViewers:
            raise web.HTTPServiceUnavailable(text="too many viewers\n") from None
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()  # close() waits for a viewer that does not read
        return response

    async def camera(self, request: web.Request) -> web.Response:
        return web.json_response(text=pages.camera_json(request.match_info["instrument"]))

    async def visit(self, request: web.Request) -> web.Response:
        rows = await asyncio.to_thread(self.daemon.visit, request.match_info["group"])
        async with self.reading_logs:
            log = await asyncio.to_thread(self._log, rows)
        return _html(pages.visit_page(rows, log, self._note()))

    def _log(self, rows: tuple[VisitRow, ...]) -> list[LogLine] | None:
        """Return the lines of a visit, or `None` if this user may not read them."""
        try:
            return visit_lines(self.daemon, rows)
        except (Denied, Unavailable):
            return None

    async def detector(self, request: web.Request) -> web.Response:
        instrument, detector = request.match_info["instrument"], int(request.match_info["detector"])
        name = ""
        with contextlib.suppress(ConfigError, LookupError):
            name = load_camera(instrument).detectors[detector].name
        rows = await asyncio.to_thread(
            lambda: self.daemon.visits(DETECTOR_ROWS, instrument=instrument, detectors=(detector,))
        )
        return _html(pages.detector_page(instrument, detector, name, rows, self._note()))

    async def stamp(self, request: web.Request) -> web.Response:
        stamps = None if self.alerts is None else self.alerts.stamps
        image = None if stamps is None else stamps.images.get(request.match_info["name"])
        if image is None:
            raise NotFound("there is no such cutout")
        return web.Response(body=image, content_type="image/png")

    async def tonight(self, request: web.Request) -> web.Response:
        raise web.HTTPFound(night_link(day_obs(Clock().tai())))

    async def night(self, request: web.Request) -> web.Response:
        try:
            day = parse_night(request.match_info["day"])
        except ValueError as error:
            raise NotFound(str(error)) from None
        # One at a time: a whole night takes seconds, during which events are sent later.
        async with self.night_lock:
            report = await asyncio.to_thread(lambda: read_night([self.daemon.journal_path()], day, Clock()))
        return _html(await asyncio.to_thread(pages.night_page, report))

    async def night_css(self, request: web.Request) -> web.Response:
        return web.Response(text=CHARTS_CSS.read_text(), content_type="text/css")

    def _note(self) -> str:
        return "The daemon does not run; this is from its journal." if self.daemon.from_journal else ""

    async def login_form(self, request: web.Request) -> web.Response:
        return _html(pages.login_page(wrong=False))

    async def login(self, request: web.Request) -> web.Response:
        token = str((await request.post()).get("token", ""))
        if not self.access.is_token(token):
            async with self.login_lock:
                await asyncio.sleep(LOGIN_PAUSE_S)
            _LOG.warning("a wrong token from %s", request.remote)
            return _html(pages.login_page(wrong=True), status=403)
        response = web.HTTPSeeOther("/")
        response.set_cookie(COOKIE, self.access.cookie, httponly=True, samesite="Strict", max_age=30 * 86400)
        raise response

    @web.middleware
    async def checked(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer those who may see the page; an error of the daemon is a page, too."""
        host = request.host if request.host.endswith("]") else request.host.rpartition(":")[0] or request.host
        if not self.access.allows_host(host):
            raise web.HTTPForbidden(text="this page has another name\n")
        is_public = request.path == "/login" or request.path.startswith("/static/")
        authorization, cookie = request.headers.get("Authorization", ""), request.cookies.get(COOKIE, "")
        if not is_public and not self.access.allows(authorization=authorization, cookie=cookie):
            if request.path == "/":
                raise web.HTTPSeeOther("/login")
            raise web.HTTPForbidden(text="open / and give the token\n")
        try:
            return await handler(request)
        except NotFound as error:
            return _html(pages.message_page("Not found", str(error)), status=404)
        except PPDaemonError as error:
            return _html(pages.message_page("Not available", str(error)), status=503)


def _html(page: Html, status: int = 200) -> web.Response:
    return web.Response(text=page, content_type="text/html", status=status)


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


def make_app(daemon: Daemon, access: Access, clock: Clock, alerts: Path | None = None) -> web.Application:
    """Return the application: it follows the daemon, and the folder of alerts, while it runs."""
    model = LiveModel()
    hub = Hub(model.snapshot, lambda: round((clock.tai() - TAI_MINUS_UTC_S) * 1000))
    follower = Follower(daemon, model, hub, clock)
    watch = None if alerts is None else AlertWatch(alerts, lambda facts: hub.publish(model.alert(facts)))
    logs = asyncio.Semaphore(LOG_READERS)
    site = _Site(daemon, access, hub, asyncio.Lock(), asyncio.Lock(), logs, watch)
    app = web.Application(middlewares=[site.checked], client_max_size=8192)
    app.on_response_prepare.append(_add_headers)
    app.add_routes(
        [
            web.get("/", site.live),
            web.get("/events", site.events),
            web.get("/camera/{instrument}", site.camera),
            web.get("/alert/{name}", site.stamp),
            web.get("/visit/{group:.+}", site.visit),
            web.get(r"/detector/{instrument}/{detector:\d{1,6}}", site.detector),
            web.get("/night/now", site.tonight),
            web.get("/night/{day}", site.night),
            web.get("/night.css", site.night_css),
            web.get("/login", site.login_form),
            web.post("/login", site.login),
            web.static("/static", STATIC),
        ]
    )

    async def follow(_app: web.Application) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(part.run()) for part in (follower, watch) if part is not None]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    app.cleanup_ctx.append(follow)
    return app
