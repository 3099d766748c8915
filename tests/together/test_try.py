"""`lmedit try`: base and edited side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from lmedit import LowRank, Update, load_lm
from lmedit.actions.top import top_tokens
from lmedit.edits.ledger import applied, base_of
from lmedit.edits.patches import load_patch, save_patch
from lmedit.metrics.generate import greedy

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from lmedit import Lm

    Run = Callable[..., Result]
PROMPT = "The river runs to"


@pytest.fixture
def base(model: Path) -> Lm:
    return load_lm(str(model))


@pytest.fixture
def made(base: Lm) -> dict[str, Update]:
    """Two patches of the tiny model, ``one`` and ``two``, in this folder."""
    found = {}
    for number, name in enumerate(("one", "two")):
        site, draw = base.mlp_out(number), torch.Generator().manual_seed(number)
        rows, columns = base.weight(site).shape
        left, right = (torch.randn(*s, generator=draw) for s in ((rows, 1), (1, columns)))
        found[name] = Update({site: LowRank(left, right)})
        request = {"prompt": "{} is in", "subject": "The tower", "target_new": "Rome"}
        facts = {"request": request, "model": base_of(base, found[name])}
        save_patch(Path(f"{name}.safetensors"), found[name], facts)
    return found


def test_each_column_is_what_its_model_says(
    lmedit: Run, model: Path, base: Lm, made: dict[str, Update]
) -> None:
    done = lmedit("try", "one.safetensors", "two.safetensors", PROMPT, "-m", model, "--json")
    assert done.exit_code == 0, done.output
    ((asked,), before) = json.loads(done.stdout), base.weights_digest()
    assert asked["prompt"] == PROMPT
    found = {each["model"]: each for each in asked["models"]}
    assert [*found] == ["base", "one", "two", "all"]
    assert found["base"]["top"] == top_tokens(base, PROMPT)
    for name, update in made.items():
        with applied(base, update):
            top, text = top_tokens(base, PROMPT), greedy(base, [PROMPT], 16)[0]
        assert found[name]["writes"] == text
        assert [t["token"] for t in found[name]["top"]] == [t["token"] for t in top]
    with applied(base, made["one"]), applied(base, made["two"]):
        assert found["all"]["top"][0]["token"] == top_tokens(base, PROMPT)[0]["token"]
    assert found["one"]["top"] != found["base"]["top"] != found["two"]["top"]
    assert base.weights_digest() == before


def test_without_prompts_it_asks_the_facts_then_stdin(
    lmedit: Run, model: Path, made: dict[str, Update]
) -> None:
    Path("near.txt").write_text("A small boat is in\n", encoding="utf-8")
    arguments = ["try", "one.safetensors", "-m", model, "--near", "near.txt"]
    done = lmedit(*arguments, input=f"{PROMPT}\n\n")
    assert done.exit_code == 0, done.output
    asked = [line[8:] for line in done.stdout.splitlines() if line.startswith("prompt: ")]
    assert asked[:2] == ["The tower is in", "A small boat is in"]
    assert asked[-1] == PROMPT
    assert "base" in done.stdout.splitlines()[1]
    assert "one" in done.stdout.splitlines()[1]


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture
def chatting(model: Path, made: dict[str, Update], tmp_path: Path) -> Lm:
    """A copy of the tiny model with a chat template; patch ``one`` was made in the chat."""
    del made
    own = shutil.copytree(model, tmp_path / "chatting")
    lm = load_lm(str(own))
    lm.tokenizer.chat_template = TEMPLATE
    lm.tokenizer.save_pretrained(own)
    lm = load_lm(str(own), chat=True, system="Be short.")
    _make_in_chat(lm, "one")
    return lm


def _make_in_chat(lm: Lm, name: str) -> None:
    update, facts = load_patch(Path(f"{name}.safetensors"))
    facts = {**facts, "asking": {"join": "none", "chat": {"system": "Be short."}}}
    facts = {key: value for key, value in facts.items() if key not in {"sites", "notes"}}
    Path(f"{name}.safetensors").unlink()
    save_patch(Path(f"{name}.safetensors"), update, {**facts, "model": base_of(lm, update)})


def test_a_patch_made_in_a_chat_is_tried_in_that_chat(lmedit: Run, chatting: Lm) -> None:
    model = chatting.folder
    assert chatting.chat is not None
    plain = top_tokens(chatting, PROMPT)
    wrapped = top_tokens(chatting, chatting.chat.wrap(PROMPT))
    assert wrapped != plain
    done = lmedit("try", "one.safetensors", PROMPT, "-m", model, "--json")
    assert done.exit_code == 0, done.output
    assert "asked through the chat template, as the patch was made" in done.stderr
    ((asked,),) = (json.loads(done.stdout),)
    assert (asked["prompt"], asked["chat"]) == (PROMPT, {"system": "Be short."})
    assert asked["models"][0]["top"] == wrapped
    told = lmedit("try", "one.safetensors", "-m", model, input=PROMPT)
    assert "prompt: The tower is in (through the chat template)" in told.stdout
    assert f"prompt: {PROMPT} (through the chat template)" in told.stdout
    bare = lmedit("try", "one.safetensors", PROMPT, "-m", model, "--no-chat", "--json")
    assert json.loads(bare.stdout)[0]["models"][0]["top"] == plain
    assert json.loads(bare.stdout)[0]["chat"] is None


def test_a_patch_of_many_facts_made_in_a_chat_tells_it(lmedit: Run, chatting: Lm) -> None:
    facts = [
        {"prompt": "{} is in", "subject": subject, "target_new": new}
        for subject, new in (("The tower", "the"), ("A small boat", "river"))
    ]
    Path("facts.jsonl").write_text("\n".join(map(json.dumps, facts)), encoding="utf-8")
    arguments = ["edit", "locft-bf", "--facts", "facts.jsonl", "-m", chatting.folder, "--force"]
    arguments += ["--chat", "--system", "Be short.", "-O", "many.safetensors", "--json"]
    done = lmedit(*arguments)
    assert done.exit_code == 0, done.output
    told, (_, kept) = json.loads(done.stdout), load_patch(Path("many.safetensors"))
    for found in (told, kept):
        assert found["asking"]["chat"] == {"system": "Be short."}
        assert [each["prompt"] for each in found["requests"]] == ["{} is in"] * 2
    assert "asked through the chat template of the tokenizer" in told["remarks"]
    tried = lmedit("try", "many.safetensors", "-m", chatting.folder, input="")
    assert "prompt: The tower is in (through the chat template)" in tried.stdout


def test_patches_of_several_chats_need_a_choice(lmedit: Run, chatting: Lm) -> None:
    arguments = ["try", "one.safetensors", "two.safetensors", PROMPT, "-m", chatting.folder]
    assert "made with different chats; give --chat" in lmedit(*arguments).stderr
    done = lmedit(*arguments, "--chat", "--system", "Be short.", "--json")
    assert done.exit_code == 0, done.output
    assert chatting.chat is not None
    wrapped = top_tokens(chatting, chatting.chat.wrap(PROMPT))
    assert json.loads(done.stdout)[0]["models"][0]["top"] == wrapped


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["one.safetensors", PROMPT, "--chat"], "has no chat template"),
        (["one.safetensors", PROMPT, "--system", "Be short."], "--system is for a chat"),
        (["no prompt first", "one.safetensors"], "is no patch file"),
        (["one.safetensors", "one.safetensors"], "named twice"),
        (["missing.safetensors", PROMPT], "missing.safetensors"),
        (["one.safetensors", " "], "the prompt is blank"),
        (["one.safetensors", PROMPT, "--near", "x.txt"], "--near is for the facts"),
    ],
)
def test_bad_input_is_one_line(
    lmedit: Run, model: Path, made: dict[str, Update], arguments: list[str], words: str
) -> None:
    done = lmedit("try", *arguments, "-m", model)
    assert done.exit_code != 0
    assert done.stdout == ""
    assert words in done.stderr.splitlines()[-1]


def test_on_a_terminal_it_asks_for_prompts(
    model: Path, made: dict[str, Update], warm: tuple[str, ...]
) -> None:
    """A true terminal: the mark stands before each prompt, and Ctrl-D ends the command."""
    import os
    import pty
    import subprocess

    ours, theirs = pty.openpty()
    code = f"from lmedit.cli import main; main(['try', 'one.safetensors', '-m', {str(model)!r}])"
    child = subprocess.Popen(
        [*warm, "-c", code],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(theirs)
    os.write(ours, f"{PROMPT}\n\x04".encode())
    out, err = child.communicate(timeout=600)
    os.close(ours)
    assert child.returncode == 0, err
    asked = [line[8:] for line in out.splitlines() if line.startswith("prompt: ")]
    assert (asked[0], asked[-1]) == ("The tower is in", PROMPT)
    assert err.count("prompt (Ctrl-D ends):") == 2
