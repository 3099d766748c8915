"""Who may ask the server: this machine alone, or whoever knows the token.

Another page in the same browser must not ask either. A strange name can lead to this machine, so
the name of the host is checked. The page that asks is checked too. Each act needs a header that
only our own page can send.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from lmedit.errors import UsageError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")
"""The names of this machine that only this machine can use."""
EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104  (a value to compare with)
LEAST_TOKEN = 16
"""The least number of characters of a token."""
COOKIE, SESSION = "lmedit_token", "x-lmedit-session"
RULES = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
"""Headers of every answer: the browser loads nothing from another host."""


@dataclass(frozen=True)
class Access:
    """Where the server listens, and the token that it asks for; None: this machine needs none."""

    host: str = "127.0.0.1"
    port: int = 7860
    token: str | None = None

    def __post_init__(self) -> None:
        """Raise `UsageError` for a host that others can reach without a sufficient token."""
        if self.host not in LOCAL and self.token is None:
            raise UsageError("--host lets other machines in; give --token too")
        if self.token is not None and (len(self.token) < LEAST_TOKEN or not self.token.isascii()):
            raise UsageError(f"--token needs at least {LEAST_TOKEN} characters of ASCII")

    @property
    def address(self) -> str:
        """The address of the page, with the token if there is one."""
        name = "127.0.0.1" if self.host in EVERYWHERE else self.host
        name = f"[{name}]" if ":" in name and not name.startswith("[") else name
        return f"http://{name}:{self.port}/{f'?token={self.token}' if self.token else ''}"

    def knows(self, host: str) -> bool:
        """Whether *host*, the name that a request uses, is a name of this server."""
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if self.host in EVERYWHERE:
            return True  # every request has shown the token
        return name in {self.host.strip("[]").lower(), *(LOCAL if self.host in LOCAL else ())}

    def is_token(self, given: str) -> bool:
        """Whether *given* is the token, in a time that does not tell how much of it is right."""
        return self.token is None or hmac.compare_digest(given.encode(), self.token.encode())


class Guard:
    """Refuse a request before the application sees it."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for `app`, or let it answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self._refuse(scope, Headers(scope=scope))

        async def send_with_rules(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                assert isinstance(headers, list)
                headers += [(k.encode(), v.encode()) for k, v in RULES.items()]
            await send(message)

        await (refused or self.app)(scope, receive, send_with_rules)  # type: ignore[arg-type]

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request that may not pass; None if it may."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        token = given or _bearer(headers) or _cookie(headers)
        if not self.access.is_token(token):
            return PlainTextResponse(
                "give the token: open the address that lmedit play printed", 401
            )
        host = headers.get("host", "")
        if not self.access.knows(host):
            return PlainTextResponse(f"this server is not {host!r}; open its own address", 421)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("another page may not ask this server", 403)
        if scope["method"] != "GET" and SESSION not in headers:
            return PlainTextResponse("only the page of this server may ask", 403)
        if given and scope["path"] == "/":
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, given, httponly=True, samesite="strict")
            return answer
        return None


def _bearer(headers: Headers) -> str:
    return headers.get("authorization", "").removeprefix("Bearer ").strip()


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
