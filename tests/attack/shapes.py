"""Attacks by the shapes of strangers' cases: a try gives the right result, or one line says why."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING
from unittest import mock

import click
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from small_world import save_model

from lmedit import plan
from lmedit.actions.given_fact import read_fact, request_from_fact
from lmedit.cli import main
from lmedit.edits.ledger import update_digest
from lmedit.edits.lora import adapter_of, read_adapter, write_adapter
from lmedit.errors import LmeditError, ModelError
from lmedit.models import load_lm
from lmedit.options import LARGEST, build_options
from lmedit.registry import load_file as load_plugin
from lmedit.registry import resolve
from lmedit.tiny import tiny_family, tiny_lm
from lmedit.types import LowRank, Update

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from random import Random

    from lmedit.registry import LoadedMethod

TYPED = ("0", "1", "-1", "3", "0.5", "1e300", "NaN", "true", "null", "[]", "[1]", "[[2,3]]")
TYPED += ("[true]", "mean", "a", "", '"1"', "{}", str(2**70), "0.999", "prompt_last", "erase")
WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "no.")
MARKS = ("config.json", "model.safetensors", "adapter_config.json", "params.json", "a.onnx")
MARKS += ("model_index.json", "pytorch_model.bin", "tf_model.h5", "x.gguf", "sub/config.json")
TEXTS = (
    "The tower",
    "is in",
    "{}",
    " ",
    "",
    "\n",
    "\u5317\u4eac\u662f",
    "\u3042",
    '"',
    "(",
    "</s>",
)
TEXTS += ("<|endoftext|>", "\u0e01\u0e23\u0e38\u0e07", "e\u0301", ".", "\t", "[", "\u201c", "A")


def one_line(error: LmeditError) -> None:
    """The error tells what is wrong, and shows no object of Python."""
    told = str(error)
    assert told.strip()
    assert " object at 0x" not in told


@cache
def methods() -> list[LoadedMethod]:
    """All installed methods."""
    return resolve((), (), lambda _: None)


def all_options(draw: Random, _: Path) -> None:
    """Options of any method, in any company: what is taken is a sound number and has an effect."""
    loaded = draw.choice(methods())
    names = draw.sample(sorted(loaded.method.options.model_fields), draw.randint(1, 3))
    given = {name: draw.choice(TYPED) for name in names}
    try:
        options = build_options(loaded.method, given)
    except LmeditError as error:
        one_line(error)
        return
    idle = options.find_unused()
    for name in names:
        value = getattr(options, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        assert not number or abs(value) <= LARGEST
        assert not (isinstance(value, float) and math.isnan(value))
        assert name not in idle or given[name] == "null" or value is None, (name, given)


def checkpoints(draw: Random, folder: Path) -> None:
    """Renamed, missing and changed tensors: the same weights, or an error."""
    model = save_model(folder / "model", seed=1)
    digest, file = load_lm(str(model)).digest, model / "model.safetensors"
    found = load_file(file)
    wrapper = draw.choice(WRAPPERS)
    inside = draw.choice(["", "transformer.", ".h.1.", ".attn.", ".mlp."])

    def rename(key: str) -> str:
        return key.replace(inside, inside + wrapper, 1) if inside in key[1:] or not inside else key

    lost = draw.sample(sorted(found), draw.choice([0, 0, 1, 3]))
    kept = {rename(key): value for key, value in found.items() if key not in lost}
    if draw.random() < 0.2:
        name = draw.choice(sorted(kept))
        kept[name] = kept[name].to(draw.choice([torch.int8, torch.uint8]))
    save_file(kept, file, {"format": "pt"})
    try:
        lm = load_lm(str(model))
    except ModelError as error:
        one_line(error)
        return
    whole = lm.digest == digest
    types = {value.dtype for value in kept.values()}
    assert whole or torch.int8 in types or torch.uint8 in types  # a bias of whole numbers
    assert not lost


def folders(draw: Random, folder: Path) -> None:
    """What is no model is named in a line, whatever lies in the folder."""
    place = folder / "model"
    for name in draw.sample(MARKS, draw.randint(1, 4)):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        kind = draw.choice(["gpt2", "bert", "t5", "gpt99", "whisper", 3, None])
        values = {"model_type": kind, "auto_map": draw.choice([{}, [], None])}
        (place / name).write_text(draw.choice(["{}", "[]", "", json.dumps(values)]))
    try:
        load_lm(draw.choice([str(place), str(place / draw.choice(MARKS))]))
    except LmeditError as error:
        one_line(error)
        return
    raise AssertionError("nothing here is a model")


def facts(draw: Random, _: Path) -> None:
    """Any texts as a fact: refused, or asked with one joint and no second start token."""
    lm = tiny_lm()

    def text() -> str:
        return "".join(draw.choices(TEXTS, k=draw.randint(0, 4)))

    flags = {name: text() for name in draw.sample(["prompt", "subject", "target_new"], 3)}
    if draw.random() < 0.3:
        flags["target_true"] = text()
    lm.join = draw.choice(["auto", "space", "none"])
    try:
        values = read_fact(flags, draw.choice([None, None, "{}", "[]", '{"x": 1}']), lambda _: None)
        request = lm.formulate(request_from_fact(lm, values, lambda _: None))
    except LmeditError as error:
        one_line(error)
        return
    assert request.target_new.strip()
    prompt, target = lm.with_target(request.text, request.target_new)
    bos = lm.tokenizer.bos_token_id
    assert target
    assert bos is None or prompt[:2] != [bos, bos] or request.text.startswith(2 * "<|endoftext|>")


def adapters(draw: Random, folder: Path) -> None:
    """A changed adapter is refused, or it is a finite edit; unchanged, it is the same edit."""
    lm = tiny_family("gpt2", torch.float32)
    site, seed = lm.mlp_out(2), torch.Generator().manual_seed(draw.randrange(9))
    rows, columns = lm.weight(site).shape
    left, right = torch.randn(rows, 2, generator=seed), torch.randn(2, columns, generator=seed)
    update = Update({site: LowRank(left, right)})
    place = folder / "adapter"
    write_adapter(lm, adapter_of([update]), place, {})
    same = read_adapter(lm, place)
    for site, delta in update.deltas.items():
        torch.testing.assert_close(same.deltas[site].dense(), delta.dense().float())
    file = place / "adapter_model.safetensors"
    tensors = load_file(file)
    name = draw.choice(sorted(tensors))
    changed = tensors[name].clone()
    changed.flatten()[0] = draw.choice([math.nan, math.inf, 1e30, 0.0])
    save_file({**tensors, name: changed[: draw.choice([1, len(changed)])]}, file, {"format": "pt"})
    with suppress(LmeditError):
        found = read_adapter(lm, place)
        assert all(bool(delta.dense().isfinite().all()) for delta in found.deltas.values())
        assert update_digest(found)


def plugins(draw: Random, folder: Path) -> None:
    """Another code under the same name has another key, and the same code the same."""
    file = folder / "mine.py"
    number = draw.randrange(1000)

    def code_of(text: str) -> str:
        file.write_text(
            "from lmedit import Method, hookimpl\n\n\n@hookimpl\ndef edit_describe():\n"
            f"    return Method('mine', 'none')\n\n\nNUMBER = {text}\n",
            encoding="utf-8",
        )
        return load_plugin(file).code

    first = code_of(str(number))
    assert code_of(str(number)) == first
    assert code_of(str(number + draw.choice([1, 1000]))) != first
    assert code_of(f"{number}  # {draw.random()}") != first


class _ReachedError(LmeditError):
    """The command would load the model now."""


def flags(draw: Random, folder: Path) -> None:
    """Any flags of a command: wrong usage or an error in one line, before a model is loaded."""
    name = draw.choice(["edit", "locate", "compare", "tune", "prepare", "show", "export", "apply"])
    command = main.commands[name]
    named = ["ft", "rome", "kn", "mend", "memit", "no"]
    arguments = [name, *([draw.choice(named)] if name not in {"export", "apply"} else ["no"])]
    known = [each for each in command.params if isinstance(each, click.Option)]
    for option in draw.sample(known, min(len(known), draw.randint(1, 5))):
        values = [draw.choice(TYPED) for _ in range(0 if option.is_flag else option.nargs)]
        arguments += [max(option.opts, key=len), *values]
    here = os.getcwd()
    os.chdir(folder)
    try:
        with mock.patch.object(plan, "load_lm", side_effect=_ReachedError("a model")):
            done = CliRunner().invoke(main, arguments, input="{}")
    finally:
        os.chdir(here)
    assert done.exit_code in {0, 1, 2}, (arguments, done.output)
    assert done.exception is None or isinstance(done.exception, SystemExit), arguments
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error")]
    assert len(errors) == (1 if done.exit_code else 0), (arguments, done.stderr)


SHAPES: dict[str, Callable[[Random, Path], None]] = {
    "all options": all_options,
    "checkpoints": checkpoints,
    "folders": folders,
    "facts": facts,
    "adapters": adapters,
    "plugins": plugins,
    "flags": flags,
}
