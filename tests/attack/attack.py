"""Attack lmedit for some minutes, by kind; print tries and failures, and exit 1 on a failure.

    python3 dev.py attack -- --minutes 20 --seed 0 --only files

A try has a seed, which a failure names; `--only KIND --seed N --tries 1` repeats it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import test_escapes
import test_hooks
import test_readers
import test_undo
import torch
from children import ended, started
from damage import bytes_changed, value_changed
from interrupts import interrupted
from newer import NEWER
from shapes import SHAPES
from test_places import count_up, edited, run_all
from transformers.utils.logging import disable_progress_bar

from lmedit.api.editors import editor
from lmedit.cases import load_cases
from lmedit.cli.common import as_json_text
from lmedit.edits.ledger import Ledger, applied, base_of, update_digest
from lmedit.edits.model_folders import open_folder, write_folder
from lmedit.edits.patches import load_patch, save_patch
from lmedit.errors import BrokenPluginError, LmeditError
from lmedit.hyper.released import released_weights
from lmedit.options import build_options
from lmedit.registry import load
from lmedit.stats import import_statistics
from lmedit.storage.escapes import for_csv, for_markdown, for_terminal
from lmedit.storage.json_files import dump_json, parse_json
from lmedit.tiny import tiny_family

if TYPE_CHECKING:
    from collections.abc import Callable

TUNED = {"ft": {"options": {"layer": 1}, "evidence": {"model_digest": "a", "heat": [1.5]}}}
FACT = {"prompt": "{} is", "subject": "a", "target_new": "b", "target_true": "c", "id": "x"}
VALUES: tuple[Any, ...] = (None, True, -1, 0, 1.5, 10**30, "", "x", "nan", "\ud800", [], {}, [[1]])


def json_files(draw: Random, folder: Path) -> None:
    """A changed file is an error in one line, or is read."""
    kind = draw.choice([*test_readers.READERS, "cases"])
    good = FACT if kind in ("cases", "corpus") else TUNED
    text = json.dumps(value_changed(good, draw)).encode()
    data = bytes_changed(text, draw) if draw.random() < 0.7 else text
    path = folder / test_readers.NAMES.get(kind, "a.jsonl")
    path.write_bytes(data)
    reader = test_readers.READERS.get(kind, lambda path: load_cases(str(path)))
    with suppress(LmeditError):
        reader(path)
        return
    json.dumps(str(path))


def patches(draw: Random, folder: Path) -> None:
    """A changed patch is an error, or holds the same edit."""
    lm = tiny_family("gpt2", torch.float32)
    update = test_undo.change(lm, draw.randrange(9))
    save_patch(folder / "p.safetensors", update, {"model": base_of(lm, update)})
    data = (folder / "p.safetensors").read_bytes()
    for _ in range(20):
        (folder / "p.safetensors").write_bytes(bytes_changed(data, draw))
        with suppress(LmeditError):
            found, _ = load_patch(folder / "p.safetensors")
            assert update_digest(found) == update_digest(update)


def arrays(draw: Random, folder: Path) -> None:
    """A changed .npz file of statistics is an error, or its statistics are sound."""
    os.environ["LMEDIT_CACHE"] = str(folder / "cache")
    lm = tiny_family("gpt2", torch.float32)
    size = lm.weight(lm.mlp_out(0)).shape[1]
    path = test_readers.saved(folder / "a.npz", torch.eye(size).numpy(), draw.choice([5, -1, 1.5]))
    if draw.random() < 0.8:
        path.write_bytes(bytes_changed(path.read_bytes(), draw))
    with suppress(LmeditError):
        assert import_statistics(path, lm, 0).verify() >= 1


def archives(draw: Random, folder: Path) -> None:
    """A changed archive of torch is an error, or gives plain tensors."""
    weights = {f"w{number}": torch.ones(3, number + 1) for number in range(3)}
    value = draw.choice([{"model": weights}, weights, {"model": weights, "config": {"a": [1]}}])
    path, new = folder / "a.pt", draw.random() < 0.8
    torch.save(value, path, _use_new_zipfile_serialization=new)
    data = path.read_bytes()
    for _ in range(20):
        path.write_bytes(bytes_changed(data, draw))
        with suppress(LmeditError):
            assert all(
                each.layout == torch.strided for each in released_weights(str(path)).values()
            )


def options(draw: Random, _: Path) -> None:
    """An option of any type is an error of lmedit, or is taken."""
    method = load("ft").method
    name = draw.choice([*method.options.model_fields, "preset", "x"])
    with suppress(LmeditError):
        build_options(method, {name: draw.choice([*VALUES, test_readers.DEEP])})


def interrupts(draw: Random, _: Path) -> None:
    """An interrupt at any bytecode leaves the old state or the new one."""
    lm = tiny_family("gpt2", torch.float32)
    base, update = lm.weights_digest(), test_undo.change(lm, draw.randrange(9))
    place = draw.randrange(4000)
    if draw.random() < 0.5:

        def block() -> None:
            with applied(lm, update):
                pass

        interrupted(block, test_undo.BLOCK, place)
        assert (lm.weights_digest(), lm.open_blocks) == (base, ())
        return
    ledger = Ledger(lm)
    interrupted(lambda: ledger.take_out(ledger.keep(update).id), test_undo.LEDGER, place)
    ledger.take_out(*(entry.id for entry in ledger.entries))
    assert lm.weights_digest() == base


def writers(draw: Random, folder: Path) -> None:
    """Changes of one file by several processes are all kept."""
    times = draw.randint(1, 8)
    assert run_all(count_up, folder / "n.json", times, count=3) == [0] * 3
    assert json.loads((folder / "n.json").read_text()) == 3 * times


def kills(draw: Random, folder: Path) -> None:
    """A killed writer of a model folder leaves the old or the new, whole."""
    lm = tiny_family("gpt2", torch.float32)
    model = edited(lm)
    write_folder(model, folder / "model")
    model.ledger.keep(test_undo.change(lm, 1))
    child = started(write_folder, model, folder / "model")
    time.sleep(draw.random() * 0.3)
    with suppress(ProcessLookupError):
        os.kill(child.pid or 0, signal.SIGKILL)
    ended(child)
    assert len(open_folder(str(folder / "model")).ledger.entries) in (0, 1)


def hooks(draw: Random, _: Path) -> None:
    """What a method changes around a hook is put back."""
    lm = tiny_family("gpt2", torch.float32)
    test_hooks.first_buffer(lm)
    attention = lm.model.get_submodule("transformer.h.0.attn")
    attention.scaling = getattr(attention, "scaling", 1.0)
    before = lm.next_probabilities("The tower")
    acts = [test_hooks.CHANGES[k] for k in draw.sample(sorted(test_hooks.CHANGES), 3)]

    def act(*arguments: Any) -> None:
        for each in acts:
            with suppress(Exception):
                each(*arguments)

    with suppress(BrokenPluginError):
        test_hooks.editor_that(lm, act).compute(test_hooks.FACT)
    assert torch.equal(lm.next_probabilities("The tower"), before)
    editor("ft", lm, layer=1, steps=1).compute(test_hooks.FACT)


def texts(draw: Random, _: Path) -> None:
    """No text reaches a terminal, a spreadsheet or Markdown with its power."""
    signs = [*test_escapes.EVIL, "=", "@", "\t", "\n", "\ud800", "\x00", "\u2066", "\U0001f600"]
    text = "".join(draw.choices(signs, k=draw.randint(1, 30)))
    shown = for_terminal(text)
    assert not any(sign in shown for sign in (*test_escapes.SIGNS, "\ud800", "\x00"))
    assert "<" not in for_markdown(text).replace("&lt;", "")
    assert not for_csv(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    whole = text.replace("\ud800", "")
    assert parse_json(as_json_text({whole: [whole, float("nan")]})) == {whole: [whole, None]}
    parse_json(dump_json({text: text}))


KINDS: dict[str, Callable[[Random, Path], None]] = {
    "files": json_files,
    "patches": patches,
    "arrays": arrays,
    "archives": archives,
    "options": options,
    "interrupts": interrupts,
    "writers": writers,
    "kills": kills,
    "hooks": hooks,
    "texts": texts,
    **SHAPES,
    **NEWER,
}


def try_once(kind: str, seed: int) -> str | None:
    """Attack once; return the reason of a failure."""
    with tempfile.TemporaryDirectory() as place:
        cache = os.environ.get("LMEDIT_CACHE")
        try:
            KINDS[kind](Random(f"{kind} {seed}"), Path(place))
        except Exception:  # noqa: BLE001  (each is a failure of lmedit)
            return traceback.format_exc()
        finally:
            os.environ.pop("LMEDIT_CACHE", None)
            if cache is not None:
                os.environ["LMEDIT_CACHE"] = cache
    return None


def attack(kinds: list[str], seconds: float, seed: int, most: int | None) -> dict[str, list[int]]:
    """Attack each of *kinds* for an equal share of *seconds*; return tries and failures."""
    found = {}
    for kind in kinds:
        end, tries, failures = time.monotonic() + seconds / len(kinds), 0, 0
        while (most is None or tries < most) and (tries == 0 or time.monotonic() < end):
            reason = try_once(kind, seed + tries)
            if reason is not None:
                failures += 1
                sys.stderr.write(f"{kind}, seed {seed + tries}:\n{for_terminal(reason)}\n")
            tries += 1
        found[kind] = [tries, failures]
    return found


def main() -> None:
    """Read the command line, attack, and print a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tries", type=int, help="at most so many tries of each kind")
    parser.add_argument(
        "--every-bytecode",
        action="store_true",
        help="interrupt undo at every bytecode, in minutes, in place of the other kinds",
    )
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    asked = parser.parse_args()
    if asked.every_bytecode:
        os.environ["LMEDIT_ATTACK_SECONDS"] = "1"
        file = str(Path(__file__).with_name("test_undo.py"))
        sys.exit(pytest.main([file, "-k", "interrupt", "-s", "-q", "--durations=3"]))
    disable_progress_bar()
    found = attack(asked.only, 60 * asked.minutes, asked.seed, asked.tries)
    sys.stdout.write(f"{'kind':<12}{'tries':>8}{'failures':>10}" + "\n")
    for kind, (tries, failures) in found.items():
        sys.stdout.write(f"{kind:<12}{tries:>8}{failures:>10}" + "\n")
    failures = sum(each for _, each in found.values())
    sys.stdout.write(
        f"{'all':<12}{sum(tries for tries, _ in found.values()):>8}{failures:>10}" + "\n"
    )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
