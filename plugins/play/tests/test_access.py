"""Who may ask the server: the token, the name of the host, the page that asks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from made_plugins import distribution_in
from starlette.responses import PlainTextResponse

from lmedit.cli import main
from lmedit.cli.foreign import leave_out_foreign
from lmedit.errors import UsageError
from lmedit.plan import Plan
from lmedit_play.access import RULES, Access, Guard

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOKEN = "a-secret-of-25-characters"
OPEN = Access()
CLOSED = Access("0.0.0.0", token=TOKEN)


def ask(
    access: Access,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    path: str = "/",
    query: str = "",
) -> tuple[int, dict[str, str]]:
    """The status and the headers of the answer of a guarded application."""
    given = {"host": "127.0.0.1:7860", **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(Guard(PlainTextResponse("inside"), access)(scope, receive, send))
    found = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], found


def test_this_machine_may_ask_and_the_browser_loads_nothing_from_elsewhere() -> None:
    status, headers = ask(OPEN)
    assert status == 200
    assert RULES.items() <= headers.items()
    assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example:7860", "evil.example", "127.0.0.1.evil.example"])
def test_a_strange_name_of_this_machine_is_refused(host: str) -> None:
    assert ask(OPEN, {"host": host})[0] == 421
    assert ask(OPEN, {"host": "localhost:7860"})[0] == 200


def test_another_page_may_not_ask() -> None:
    own = {"x-lmedit-session": "0" * 32}
    assert ask(OPEN, own, method="POST")[0] == 200
    assert ask(OPEN, method="POST")[0] == 403
    assert ask(OPEN, own | {"origin": "http://127.0.0.1:7860"}, method="POST")[0] == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:80"):
        assert ask(OPEN, own | {"origin": origin}, method="POST")[0] == 403


def test_every_request_shows_the_token() -> None:
    right = {"authorization": f"Bearer {TOKEN}"}
    assert ask(CLOSED, right)[0] == 200
    assert ask(CLOSED, {"cookie": f"lmedit_token={TOKEN}"})[0] == 200
    wrong = ({}, {"authorization": "Bearer x"}, {"cookie": "lmedit_token=x"}, {"cookie": "\xff;=;"})
    for headers in wrong:
        for path in ("/", "/page.js", "/file/abc", "/act/edit"):
            assert ask(CLOSED, headers, path=path)[0] == 401


def test_the_address_with_the_token_leads_to_a_cookie_of_this_page_alone() -> None:
    status, headers = ask(CLOSED, query=f"token={TOKEN}")
    assert (status, headers["location"]) == (303, "/")
    cookie = headers["set-cookie"].lower()
    assert f"lmedit_token={TOKEN}" in cookie
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert ask(CLOSED, query="token=wrong")[0] == 401


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--host", "0.0.0.0"], "--host lets other machines in; give --token too"),
        (
            ["--host", "0.0.0.0", "--token", "short"],
            "--token needs at least 16 characters of ASCII",
        ),
        (["--token", "\u00e4" * 20], "--token needs at least 16 characters of ASCII"),
    ],
)
def test_a_host_for_others_needs_a_token(flags: list[str], told: str) -> None:
    done = CliRunner().invoke(main, ["play", *flags])
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1] == f"Error: {told}"


def test_methods_of_other_projects_are_offered_only_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution_in(tmp_path, "stranger", "import os\nos._exit(3)\n", distribution="their-own")
    monkeypatch.syspath_prepend(tmp_path)
    plan, (line,) = leave_out_foreign(Plan())
    assert line.startswith(
        "left out: method 'stranger' of their-own is not of this project; name it"
    )
    assert {"rome", "ft", "mend"} <= {each.name for each in plan.load_methods()}
    named = Plan(methods=("stranger",))
    assert leave_out_foreign(named) == (named, [])


def test_an_address_has_the_token_and_a_port_that_is_taken_is_one_line() -> None:
    assert CLOSED.address == f"http://127.0.0.1:7860/?token={TOKEN}"
    assert Access("::1").address == "http://[::1]:7860/"
    with pytest.raises(UsageError, match="give --token"):
        Access("192.0.2.1")
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = CliRunner().invoke(main, ["play", "--port", str(port)])
    assert done.exit_code == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert done.stderr.endswith("give another --port\n")
