"""Stdout belongs to the command: no thread, process or end of a plugin writes there."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit.tiny import tiny_family

if TYPE_CHECKING:
    from pathlib import Path

MAIN = "from lmedit.cli import main; main()"
PLUGIN = """
import atexit, os, subprocess, sys, threading, time
import torch
from lmedit import Dense, Location, Method, Update, hookimpl
from lmedit.options import Options

mark = {mark!r}

@hookimpl
def edit_describe():
    return Method("noisy", "none")

@hookimpl
def edit_locate(lm):
    return Location((lm.mlp_out(1),))

def compute(lm, location):
    site, = location.sites
    return Update({{site: Dense(0.01 * torch.ones(lm.weight(site).shape))}})

@hookimpl
def edit_compute(lm, location):
    {act}
    return compute(lm, location)
"""
ACTS = {
    "descriptor": "os.write(1, b'noise')",
    "stream": "sys.__stdout__.write('noise'); sys.__stdout__.flush()",
    "program": "subprocess.run(['echo', 'noise'])",
    "thread": (
        "threading.Thread(target=lambda: [(time.sleep(0.01), print('noise')) "
        "for _ in range(200)], daemon=True).start()"
    ),
    "end": "atexit.register(print, 'noise')",
    "fork": "os.fork() or print('noise'); open(mark, 'a').write('x')",
    "fork with an error": "os.fork() or 1 / 0",
    "fork that prints": "os.fork() or sys.stdout.write('noise')",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ACTS)
def test_the_json_of_a_command_stays_json(tmp_path: Path, kind: str, warm: tuple[str, ...]) -> None:
    lm = tiny_family("gpt2", torch.float32)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "noisy.py").write_text(PLUGIN.format(act=ACTS[kind], mark=str(tmp_path / "mark")))
    fact = ["--prompt", "{} is in", "--subject", "The tower", "--target", "the sea"]
    flags = ["-m", "model", "--json", "--force", "-O", "a.safetensors", "--no-isolate"]
    done = subprocess.run(
        [*warm, "-c", MAIN, "edit", "noisy", "--plugin", "noisy.py", *flags, *fact],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "noisy"
    assert done.stdout.count('"method"') == 1
    assert done.stderr.count("the edit is in") <= 1
    if kind == "fork":
        assert (tmp_path / "mark").read_text() == "xx"
    elif "fork with" not in kind:
        assert "noise" in done.stderr
