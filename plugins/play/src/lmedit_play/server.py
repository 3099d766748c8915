"""The page and its acts over HTTP: each act is one request, and its answer is a line per event."""

from __future__ import annotations

import json
import socket
import sys
import webbrowser
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lmedit.actions.compare import Measuring
from lmedit.cli.alone import share
from lmedit.errors import LmeditError, RequestError, UsageError
from lmedit.plan import set_up, silent
from lmedit_play import studio as acts
from lmedit_play.access import SESSION, Guard
from lmedit_play.ahead import pieces_ahead
from lmedit_play.comparing import compare
from lmedit_play.page import page_of
from lmedit_play.sessions import Sessions
from lmedit_play.studio import Studio
from lmedit_play.taking import take
from lmedit_play.tracing import where
from lmedit_play.work import Job, Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.requests import Request as Asked

    from lmedit.plan import Plan, Tell
    from lmedit_play.access import Access
    from lmedit_play.sessions import Session

STATIC = Path(__file__).parent / "static"
KINDS = {"page.css": "text/css", "page.js": "text/javascript"}
LARGEST_BODY = 1_000_000
"""The most bytes of an act's values."""
LARGEST_PATCH = 4 * 1024**3
"""The most bytes of a patch that the user brings."""
ACTS = {
    act.__name__: act
    for act in (
        *(acts.fact, acts.options, acts.edit, acts.look, acts.switch, acts.remove),
        *(acts.verify, acts.state, where, compare, take),
    )
}
"""The acts by name, as the page asks for them."""


class Server:
    """The application: one model, one worker, many tabs."""

    def __init__(self, studio: Studio, access: Access) -> None:
        self.studio, self.access = studio, access
        self.sessions, self.worker = Sessions(), Worker(studio.warm)
        self.page = page_of(studio)
        routes = [
            Route("/", self._page),
            Route("/{name:str}", self._static),
            Route("/file/{key:str}", self._file),
            Route("/act/{name:str}", self._act, methods=["POST"]),
            Route("/ahead", self._ahead, methods=["POST"]),
            Route("/bring/{name:path}", self._bring, methods=["POST"]),
            Route("/stop/{job:str}", self._stop, methods=["POST"]),
        ]
        self.app = Starlette(
            routes=routes, middleware=[Middleware(Guard, access=access)], lifespan=self._life
        )

    @asynccontextmanager
    async def _life(self, _: Starlette) -> AsyncIterator[None]:
        """At the end, stop the work and delete the files of the tabs."""
        yield
        self.worker.close()
        self.sessions.close()

    async def _page(self, _: Asked) -> Response:
        return Response(self.page, media_type="text/html")

    async def _static(self, asked: Asked) -> Response:
        name = asked.path_params["name"]
        if name not in KINDS:
            return JSONResponse({"error": "there is no such page"}, 404)
        return FileResponse(STATIC / name, media_type=KINDS[name])

    async def _file(self, asked: Asked) -> Response:
        path = self.sessions.file(asked.path_params["key"])
        if path is None or not path.is_file():
            return JSONResponse({"error": "this file is gone; make it again"}, 404)
        return FileResponse(path, filename=path.name, media_type="application/octet-stream")

    async def _act(self, asked: Asked) -> Response:
        """Run an act; the answer is a line of JSON for each event."""
        act = ACTS.get(asked.path_params["name"])
        if act is None:
            return JSONResponse({"error": "there is no such act; load the page again"}, 404)
        try:
            session, given = await self._read(asked)
        except (LmeditError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return self._start(act, session, given)

    async def _read(self, asked: Asked) -> tuple[Session, dict[str, Any]]:
        """The session and the values that *asked* brings. Raises `LmeditError`, `ValueError`."""
        session = self.sessions.of(asked.headers[SESSION])
        given = json.loads(await _body(asked))
        if not isinstance(given, dict):
            raise RequestError("the act has no values; load the page again")
        return session, given

    async def _ahead(self, asked: Asked) -> Response:
        """Learn what the page shows: what its edit needs is computed while no job waits."""
        try:
            _, given = await self._read(asked)
        except (LmeditError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)
        tab = asked.headers[SESSION]
        self.worker.look_ahead(tab, lambda: pieces_ahead(self.studio, given))
        return Response(status_code=204)

    async def _bring(self, asked: Asked) -> Response:
        """Take a patch file of the user; it is checked as one of the command line."""
        try:
            session = self.sessions.of(asked.headers[SESSION])
        except RequestError as error:
            return JSONResponse({"error": str(error)}, 400)
        name = Path(asked.path_params["name"]).name or "patch"
        path, size = session.place(name), 0
        with path.open("wb") as file:
            async for part in asked.stream():
                size += len(part)
                if size > LARGEST_PATCH:
                    path.unlink()
                    return JSONResponse({"error": f"{name} is too large for a patch"}, 413)
                file.write(part)
        return self._start(acts.bring, session, {"file": path})

    async def _stop(self, asked: Asked) -> Response:
        return JSONResponse({"found": self.worker.stop(asked.path_params["job"])})

    def _start(
        self, act: Callable[..., dict[str, Any]], session: Session, given: dict[str, Any]
    ) -> Response:
        def run(job: Job) -> dict[str, Any]:
            with session.all_or_nothing():
                return act(self.studio, session, given, job)

        job = Job(run, self.studio.lm, session.shorten)
        before = self.worker.start(job)

        async def lines() -> AsyncIterator[str]:
            yield json.dumps({"job": job.id, "before": before}) + "\n"
            async for event in job.events():
                yield json.dumps(event) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")


async def _body(asked: Asked) -> bytes:
    """The body of *asked*. Raises `RequestError` if it is too large."""
    parts, size = [], 0
    async for part in asked.stream():
        size += len(part)
        if size > LARGEST_BODY:
            raise RequestError("the values are too long; shorten your texts")
        parts.append(part)
    return b"".join(parts)


def open_port(access: Access) -> socket.socket:
    """A socket that listens as *access* says. Raises `UsageError` if it is taken."""
    host = access.host.strip("[]")
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(kind)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, access.port))
    except OSError as error:
        found.close()
        what = f"cannot listen on {host} port {access.port}: {error.strerror}"
        raise UsageError(f"{what}; give another --port") from error
    return found


def studio_of(plan: Plan, tell: Tell = silent, left_out: Sequence[str] = ()) -> Studio:
    """Load the model and our methods of *plan*; foreign ones get processes. See `serve`."""
    sharing = share(plan, Measuring(), isolate=None)
    alone = [name for name in sharing.alone if name not in plan.others]
    plans = {name: sharing.of(name, plan) for name in alone}
    mine = replace(sharing.together(plan), others=(*plan.others, *alone))
    return Studio(set_up(mine, tell, probing=True), left_out, plans)


def serve(
    plan: Plan,
    access: Access,
    tell: Callable[[str], object],
    *,
    opens: bool,
    left_out: Sequence[str] = (),
) -> None:
    """Load the model of *plan* and serve its page until SIGINT or SIGTERM.

    The address goes to *tell*; with *opens*, the browser of this machine opens it. *left_out* are
    lines on methods that are not in *plan*; the page shows them too. The port is taken before the
    model is loaded. Raises `UsageError`, and what `set_up` raises.
    """
    listening = open_port(access)
    access = replace(access, port=listening.getsockname()[1])
    with listening:
        missing: list[str] = []

        def hear(text: str) -> None:
            tell(text)
            if text.startswith("left out: "):
                missing.append(text)

        for line in left_out:
            hear(line)
        server = Server(studio_of(plan, hear, missing), access)
        listening.listen()  # who opens the address at once waits for the first answer
        tell(f"the playground is at {access.address} (Ctrl-C ends it)")
        if opens:
            webbrowser.open(access.address)
        settings = uvicorn.Config(
            server.app, log_level="warning", access_log=False, timeout_graceful_shutdown=2
        )
        uvicorn.Server(settings).run(sockets=[listening])
        sys.stderr.flush()
