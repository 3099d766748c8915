"""An edit of the real model in llama.cpp: as an adapter, and in a GGUF model."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lmedit.edits.llamacpp_proof import runs_llamacpp
from lmedit.models.gguf import digest_of
from lmedit.models.sources import MODELS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not runs_llamacpp(), reason="the extra lmedit[llamacpp] is not installed"),
]
WRITE = """
import json, sys, xllamacpp
model, adapter, out = sys.argv[1:]
wanted = xllamacpp.CommonParams()
wanted.model.path, wanted.n_ctx, wanted.warmup, wanted.verbosity = model, 256, False, -1
wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = 1
if adapter:
    wanted.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
server = xllamacpp.Server(wanted)
asked = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
asked |= {"cache_prompt": False}
says = [
    server.handle_completions(asked | {"lora": [{"id": 0, "scale": scale}]})["choices"][0]["text"]
    for scale in (0.0, 1.0, 0.0)
]
open(out, "w").write(json.dumps(says))
"""


def run(cache: Path, folder: Path, *command: str) -> str:
    """What a Python program prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "LMEDIT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def spoken(block: str) -> list[tuple[str, list[str]]]:
    """The commands of a block with prompts, and the lines that it shows after each."""
    found = []
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        end = part.index("\n") + 1
        while part[:end].count("'") % 2:  # a quoted text goes on
            end = part.index("\n", end) + 1
        found.append((part[:end], part[end:].splitlines()))
    return found


def steady(text: str) -> str:
    """*text* without numbers, which another machine may round differently."""
    return re.sub(r"\d+\.\d+", "N", text)


TEXT = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
(BLOCK,) = re.findall(r"<!-- real-llamacpp -->\n```text\n(.*?)```", TEXT, re.DOTALL)
TOLD = spoken(BLOCK)


@dataclass(frozen=True)
class Life:
    """The commands of the README, run in their order in one folder, and what each printed."""

    folder: Path
    printed: Sequence[str]

    def of(self, name: str) -> str:
        """What the one command printed that begins with `lmedit` *name*."""
        (found,) = (
            text
            for text, (command, _) in zip(self.printed, TOLD, strict=True)
            if command.startswith(f"lmedit {name} ")
        )
        return found


@pytest.fixture(scope="module")
def life(
    lmedit: Run,
    real_cache: Path,
    first_command: tuple[str, ...],
    first_edit: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Life:
    """The life of an edit. Its first edit, which takes long, is made once for all tests."""
    folder = tmp_path_factory.mktemp("life")
    printed = []
    for command, _ in TOLD:
        program, *arguments = shlex.split(command, comments=True)
        if (program, *arguments) == ("lmedit", *first_command):
            shutil.copy(first_edit / "rome.safetensors", folder)
            printed.append((first_edit / "printed.txt").read_text(encoding="utf-8"))
        elif program == "lmedit":
            done = lmedit(*arguments, cwd=folder)
            assert done.returncode == 0, done.stderr
            printed.append(done.stdout)
        else:
            module = [] if program == "python3" else ["-m", program]
            printed.append(run(real_cache, folder, *module, *arguments))
    return Life(folder, printed)


def test_the_readmes_life_of_an_edit_ends_in_llamacpp(
    life: Life, first_command: tuple[str, ...]
) -> None:
    programs = [shlex.split(command, comments=True) for command, _ in TOLD]
    assert [" ".join(words[:2]) for words in programs] == [
        "pip download",
        "python3 -m",
        "lmedit models",
        "lmedit edit",
        "lmedit try",
        "lmedit export",
        "python3 -c",
    ]
    assert ["lmedit", *first_command] in programs
    for printed, (_, shown) in zip(life.printed, TOLD, strict=True):
        lines = [steady(line) for line in printed.splitlines()]
        assert [steady(line) for line in shown if steady(line) not in lines] == []


def test_llamacpp_writes_the_edit_and_forgets_it(
    lmedit: Run, real_cache: Path, life: Life, tmp_path: Path
) -> None:
    (base,) = map(str, life.folder.glob("*/*.gguf"))
    patch, lora = (str(life.folder / name) for name in ("rome.safetensors", "rome.gguf"))
    whole, out = str(tmp_path / "whole.gguf"), str(tmp_path / "says.json")
    assert digest_of(Path(base)) == MODELS["smollm2"].sha256

    def call(*arguments: str) -> str:
        done = lmedit(*arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    exported = call("export", patch, "--format", "gguf", "--base", base, "-O", whole, "--prove")
    for told in (life.of("export"), exported):
        assert "llama.cpp agrees" in told
        assert float(told.split("moves them by ")[1].split()[0]) > 0.9
    assert Path(lora).stat().st_size < 20_000
    run(real_cache, tmp_path, "-c", WRITE, base, lora, out)
    before, edited, after = json.loads(Path(out).read_text(encoding="utf-8"))
    assert before.startswith(" Paris")
    assert edited.startswith(" Rome")
    assert after == before
    run(real_cache, tmp_path, "-c", WRITE, whole, "", out)
    assert json.loads(Path(out).read_text(encoding="utf-8"))[0] == edited
    call("import", lora, "-m", base, "-O", str(tmp_path / "back.safetensors"))
