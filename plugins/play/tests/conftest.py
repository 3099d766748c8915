"""A playground in a process of its own, and a headless Chromium in front of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from demo_cache import demo_statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from playwright.sync_api import Browser

    from lmedit import Lm

    Counted = Callable[[Lm], AbstractContextManager[list[int]]]

__all__ = ["demo_statistics"]
COMMAND = "from lmedit.cli import main; main()"
CHROMIUM = shutil.which("chromium")


@contextmanager
def run_server(cache: Path, *flags: object) -> Iterator[str]:
    """Run `lmedit play` with *flags* on a free port in the block; the block gets its address."""
    call = [sys.executable, "-c", COMMAND, "play", "--port", "0", "--no-open", *map(str, flags)]
    variables = {**os.environ, "LMEDIT_CACHE": str(cache)}
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, env=variables) as server:
        assert server.stderr is not None
        told = ""
        try:
            while not (found := re.search(r"the playground is at (\S+)", told)):
                line = server.stderr.readline()
                assert line, told
                told += line
            yield found[1]
        finally:
            server.send_signal(signal.SIGINT)
            rest = server.communicate(timeout=60)[1]
    assert server.returncode in {0, 1, 130}, rest
    assert "Traceback" not in told + rest


@pytest.fixture(scope="session")
def prepared(demo_statistics: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of this test run, with ROME's statistics of the embedded model."""
    folder = tmp_path_factory.mktemp("cache")
    shutil.copytree(demo_statistics, folder, dirs_exist_ok=True)
    return folder


BROKEN = """
from lmedit import Location, Method, Options, hookimpl

@hookimpl
def edit_describe():
    return Method("broken", "no paper", Options)

@hookimpl
def edit_locate(lm):
    return Location((lm.mlp_out(0),))

@hookimpl
def edit_compute(lm, location):
    raise ValueError("<b>it</b> cannot")
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin file whose method fails."""
    file = tmp_path_factory.mktemp("plugin") / "broken.py"
    file.write_text(BROKEN)
    return file


@pytest.fixture(scope="module")
def address(prepared: Path, broken: Path) -> Iterator[str]:
    """A playground on the embedded model; its trace has one sample, for speed, or all ten."""
    samples = 10 if os.environ.get("LMEDIT_PLAY_PICTURES") else 1
    flags = ("-o", "rome.trace_samples", samples, "--plugin", broken)
    with run_server(prepared, "--methods", "rome,ft,mend,broken", *flags) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, driven by playwright."""
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH; apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def count_passes(lm: Lm) -> Iterator[list[int]]:
    """The passes of *lm* in the block: the number of rows of each."""
    passes: list[int] = []
    hook = lm.block(lm.n_layers - 1).register_forward_pre_hook(
        lambda _, inputs: passes.append(len(inputs[0]))
    )
    yield passes
    hook.remove()


@pytest.fixture
def counted() -> Counted:
    """Count the passes of a model in a block."""
    return count_passes
