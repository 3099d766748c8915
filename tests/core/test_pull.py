"""Fetching a set of cases from a server made here: checked, resumed, put in place whole."""

from __future__ import annotations

import errno
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from children import ended, run_at_once
from click.testing import CliRunner

from lmedit.cases import load_cases, pull_cases, pulled_file
from lmedit.cases.pull import CHUNK
from lmedit.cases.sources import SOURCES, CaseSource
from lmedit.cli import main
from lmedit.errors import CasesError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FACT = b'{"subject": "The tower", "prompt": "{} is in", "target_new": "Rome"}\n'
CONTENT = FACT * (1 + 3 * CHUNK // len(FACT))
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; may ignore ranges, tell no length, or stop after some bytes of a body."""

    daemon_threads = True
    content = CONTENT
    ranges = True
    length = True
    stop_after: int | None = None
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []
        self.sent = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers.get("Range"))
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if server.ranges and (given := self.headers.get("Range")):
            start = int(given.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            whole = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        else:
            self.send_response(200)
        body = server.content[start:]
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: server.stop_after]
        server.sent += len(body)
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        ended(thread)


@pytest.fixture
def offer(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put a source named "set" on the list; returns where it will be kept."""

    def make(size: int | None = len(CONTENT), sha256: str | None = DIGEST) -> Path:
        url = f"http://127.0.0.1:{server.server_address[1]}/set.json"
        monkeypatch.setitem(SOURCES, "set", CaseSource("set", url, size, sha256))
        return pulled_file("set")

    return make


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def test_a_set_is_fetched_once_and_found_by_name(
    server: Server, offer: Callable[..., Path]
) -> None:
    path = offer()
    with pytest.raises(CasesError, match="run lmedit cases pull set"):
        load_cases("set")
    pulled = pull_cases("set")
    assert pulled.path == path
    assert path.read_bytes() == CONTENT
    assert (pulled.size, pulled.sha256, pulled.verified) == (len(CONTENT), DIGEST, True)
    assert [file.name for file in path.parent.iterdir()] == ["set.json"]
    assert pull_cases("set") == pulled
    assert server.asked == [None]
    assert load_cases("set", 2).good[1].request.text == "The tower is in"


def test_two_pulls_at_once_fetch_once(server: Server, offer: Callable[..., Path]) -> None:
    path = offer()
    found: list[Path] = []
    run_at_once(lambda: found.append(pull_cases("set").path), 4)
    assert found == [path] * 4
    assert server.asked == [None]
    assert path.read_bytes() == CONTENT


def test_an_interrupted_fetch_goes_on_where_it_stopped(
    server: Server, offer: Callable[..., Path]
) -> None:
    path, server.stop_after = offer(), 2 * CHUNK
    with pytest.raises(CasesError, match=f"after {2 * CHUNK} of {len(CONTENT)} bytes.*pull set"):
        pull_cases("set")
    assert not path.exists()
    assert part_of(path).read_bytes() == CONTENT[: 2 * CHUNK]
    server.stop_after = None
    assert pull_cases("set").verified
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={2 * CHUNK}-"]
    assert server.sent == len(CONTENT)
    assert not part_of(path).exists()


def test_a_server_without_ranges_makes_it_begin_anew(
    server: Server, offer: Callable[..., Path]
) -> None:
    path, server.ranges = offer(), False
    path.parent.mkdir(parents=True)
    part_of(path).write_bytes(CONTENT[:1000])
    assert pull_cases("set").verified
    assert path.read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_a_part_that_is_whole_is_not_fetched_again(
    server: Server, offer: Callable[..., Path]
) -> None:
    path = offer()
    path.parent.mkdir(parents=True)
    part_of(path).write_bytes(CONTENT)
    assert pull_cases("set").path.read_bytes() == CONTENT
    assert server.asked == []


def test_a_wrong_digest_keeps_nothing(offer: Callable[..., Path]) -> None:
    path = offer(sha256="0" * 64)
    with pytest.raises(CasesError, match=f"SHA-256 {DIGEST}, but 0000.* --cases FILE"):
        pull_cases("set")
    assert list(path.parent.iterdir()) == []


def test_a_wrong_part_is_found_out_by_the_digest(offer: Callable[..., Path]) -> None:
    path = offer()
    path.parent.mkdir(parents=True)
    part_of(path).write_bytes(b"x" * 1000)
    with pytest.raises(CasesError, match="SHA-256"):
        pull_cases("set")
    assert list(path.parent.iterdir()) == []
    assert pull_cases("set").verified


def test_a_wrong_size_is_refused_before_the_body_comes(
    server: Server, offer: Callable[..., Path]
) -> None:
    path = offer(size=12)
    with pytest.raises(CasesError, match=f"offers {len(CONTENT)} bytes, but 12 were expected"):
        pull_cases("set")
    assert list(path.parent.iterdir()) == []


def test_a_wrong_size_is_found_where_no_length_was_told(
    server: Server, offer: Callable[..., Path]
) -> None:
    path, server.length = offer(size=12), False
    with pytest.raises(CasesError, match=f"{len(CONTENT)} bytes, but 12 were expected"):
        pull_cases("set")
    assert list(path.parent.iterdir()) == []


def test_a_damaged_set_is_fetched_again(server: Server, offer: Callable[..., Path]) -> None:
    path = offer()
    pull_cases("set")
    path.write_bytes(CONTENT[:-1])
    assert pull_cases("set").verified
    assert path.read_bytes() == CONTENT


def test_without_a_known_digest_it_says_not_verified_and_never_resumes(
    server: Server, offer: Callable[..., Path]
) -> None:
    path = offer(size=None, sha256=None)
    path.parent.mkdir(parents=True)
    part_of(path).write_bytes(b"[an older version")
    done = CliRunner().invoke(main, ["cases", "pull", "set"])
    assert done.exit_code == 0
    assert done.stdout == f"{path}\n"
    assert f"{len(CONTENT)} bytes, SHA-256 {DIGEST}: not verified" in done.stderr
    assert path.read_bytes() == CONTENT
    assert server.asked == [None]


@pytest.mark.parametrize("page", [b"<html>moved</html>", b"version https://git-lfs.github.com"])
def test_a_page_in_place_of_the_file_is_refused(
    server: Server, offer: Callable[..., Path], page: bytes
) -> None:
    path, server.content = offer(size=None, sha256=None), page
    with pytest.raises(CasesError, match="not JSON"):
        pull_cases("set")
    assert list(path.parent.iterdir()) == []


def test_a_missing_page_and_a_silent_address_are_one_line(
    server: Server, offer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer()
    server.status = 404
    with pytest.raises(CasesError, match="answers 404") as refused:
        pull_cases("set")
    assert "\n" not in str(refused.value)
    monkeypatch.setitem(SOURCES, "set", CaseSource("set", "http://127.0.0.1:9/set.json"))
    done = CliRunner().invoke(main, ["cases", "pull", "set"])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: cannot reach http://127.0.0.1:9/set.json")
    assert len(done.stderr.splitlines()) == 1


def test_a_full_disk_keeps_what_arrived(
    offer: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = offer(), Path.open

    def full(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        file = opened(self, mode, *rest, **more)
        if mode in ("ab", "wb"):
            write = file.write

            def one_chunk(data: bytes) -> int:
                if file.tell() >= CHUNK:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return int(write(data))

            monkeypatch.setattr(file, "write", one_chunk, raising=False)
        return file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(CasesError, match=r"No space left on device \(\d+ bytes are kept\)"):
        pull_cases("set")
    monkeypatch.setattr(Path, "open", opened)
    assert part_of(path).read_bytes() == CONTENT[: part_of(path).stat().st_size]
    assert part_of(path).stat().st_size >= CHUNK
    assert pull_cases("set").verified


def test_an_unknown_set_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'counterfact'"):
        pull_cases("counterfacts")


def test_the_list_tells_what_is_there(offer: Callable[..., Path]) -> None:
    offer()
    row = ["set", "-", f"{len(CONTENT) / 1e6:.1f}", "MB", SOURCES["set"].url]
    listed = CliRunner().invoke(main, ["cases", "list"]).stdout
    assert row in [line.split() for line in listed.splitlines()]
    assert {line.split()[0] for line in listed.splitlines()} == set(SOURCES)
    pull_cases("set")
    listed = CliRunner().invoke(main, ["cases", "list"]).stdout
    assert [line.split()[1] for line in listed.splitlines() if "present" in line] == ["present"]


def test_every_official_address_is_https() -> None:
    assert all(source.url.startswith("https://") for source in SOURCES.values())
    assert SOURCES["counterfact"].size == 45108470
