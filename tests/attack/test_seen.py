"""What a person sees of strangers' text, in a real browser and on a real terminal."""

from __future__ import annotations

import json
import os
import select
import shutil
import sqlite3
import subprocess
import time
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
import torch
from small_world import record, save_model

from lmedit import LowRank, Update
from lmedit.api.comparisons import comparison
from lmedit.api.editors import editor
from lmedit.edits.ledger import base_of
from lmedit.edits.patches import save_patch
from lmedit.models import load_lm
from lmedit.report.page import page
from lmedit.report.read import read_run

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit import Lm

# ---- a browser

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
ACT = "document.documentElement.setAttribute('data-run','yes')"
MARKUP = (
    f"<script>{ACT}</script>",
    f"</script><script>{ACT}</script>",
    f'<img src=x onerror="{ACT}">',
    f'\'"><svg onload="{ACT}">',
    f"</style></title></textarea><svg onload={ACT}>",
    f"<!--<script>{ACT}</script>-->",
    f"javascript:{ACT}",
    f'<a href="javascript:{ACT}" autofocus onfocus="{ACT}">a</a>',
    f'<details open ontoggle="{ACT}">',
    f"{{{{{ACT}}}}}${{{ACT}}}`{ACT}`\u2028{ACT}",
)
TOUCH = """<script>
for (const each of document.querySelectorAll('a,button,summary,th,td,tr,select,input,option,label'))
  for (const kind of ['click','input','change','mouseover','focus','keyup'])
    each.dispatchEvent(new Event(kind, {bubbles: true}));
document.documentElement.setAttribute('data-touched', 'yes');
</script>"""


def shown(text: str, place: Path) -> str:
    """The opening tag of the page *text*, after a browser has run it and everything was touched."""
    place.write_text(text, encoding="utf-8", errors="replace")
    own = f"--user-data-dir={place.parent / 'browser'}"
    flags = [own, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000"]
    done = subprocess.run(
        [
            BROWSER,
            *flags,
            f"--user-data-dir={place.parent / 'browser'}",
            "--dump-dom",
            place.as_uri(),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    return unescape(done.stdout.partition("<html")[2].partition(">")[0])


def poisoned(value: Any, markup: str) -> Any:
    """*value* with *markup* behind every text."""
    if isinstance(value, dict):
        return {name: poisoned(part, markup) for name, part in value.items()}
    if isinstance(value, list):
        return [poisoned(part, markup) for part in value]
    return value + markup if isinstance(value, str) and len(value) < 64 else value


def poison_run(folder: Path, markup: str) -> None:
    """Put *markup* into every string of the run in *folder*, except those that link its parts."""
    for name in ("results.json", "cases.json"):
        found = json.loads((folder / name).read_text())
        changed = poisoned(found, markup)
        if name == "results.json":
            for row, old in zip(changed["rows"], found["rows"], strict=True):
                row["keys"], row["failures"] = old["keys"], {markup: 1}
                row["method"] = old["method"] if old["method"] == "base" else row["method"]
                row[markup] = 1.0
            changed["published"] = {"source": markup, "rows": [{"method": markup, "ES": 1.0}]}
        (folder / name).write_text(json.dumps(changed))
    told = {"failure": markup, "generated": {markup: markup}, "norms": {markup: 1.0}}
    with sqlite3.connect(folder / "run.sqlite") as database:
        database.execute(
            "UPDATE results SET payload = ? WHERE method != 'base'", [json.dumps(told)]
        )
    database.close()


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no browser is installed")
def test_no_string_of_a_report_runs_in_a_browser(lm: Lm, tmp_path: Path) -> None:
    methods = [editor("ft", lm, layer=1, steps=1), editor("ft-l", lm, layer=1, steps=1)]
    comparison(methods, [record(0), record(1, "A small boat")], run=tmp_path / "run")
    for number, markup in enumerate(MARKUP):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "run", folder)
        poison_run(folder, markup)
        text = page(read_run(folder))
        assert ACT[:20] in unescape(text).replace("\\u0027", "'")
        seen = shown(text + TOUCH, tmp_path / f"{number}.html")
        assert "data-run" not in seen, markup
        assert "data-touched" in seen, "the page does not run at all, so this proves nothing"
    assert "data-run" in shown(MARKUP[0] + TOUCH, tmp_path / "raw.html")


# ---- a terminal

EVIL = "a\x1b]0;owned\x07b\x1b[31mc\x9b31md\x1bPq\x1b\\e\u202ef\r\x08g"
RAW = [b"\x1b]0;owned", b"\x1b[31mc", "\x9b31m".encode(), b"\x1bPq", "\u202e".encode(), b"\x08g"]
MAIN = "from lmedit.cli import main; main()"
PLUGIN = f"""
from lmedit import Location, Method, hookimpl
@hookimpl
def edit_describe(): return Method("toy", "none")
@hookimpl
def edit_locate(lm): raise ValueError({EVIL!r} + "marker")
"""


def on_a_terminal(command: list[str], folder: Path) -> bytes:
    """All bytes that *command* writes to a pseudo-terminal."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder)
    os.close(theirs)
    found, until = b"", time.monotonic() + 300
    try:
        while time.monotonic() < until:
            if not select.select([ours], [], [], 0.2)[0]:
                if process.poll() is not None:
                    break
                continue
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # Linux: nobody holds the other end any more
                break
            found += part
            if not part:
                break
        process.wait(60)
    finally:
        process.kill()
        os.close(ours)
    return found


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A folder with a model, and files whose texts a terminal would obey."""
    folder = save_model(tmp_path / "tiny", seed=0)
    lm = load_lm(str(folder))
    site = lm.mlp_out(0)
    rows, columns = lm.weight(site).shape
    change = LowRank(torch.ones(rows, 1), torch.ones(1, columns) / 100)
    request = {"prompt": f"{{}} is {EVIL}", "subject": EVIL, "target_new": EVIL}
    facts = {"model": base_of(lm, update := Update({site: change}, {EVIL: EVIL})), EVIL: EVIL}
    facts |= {"request": request, "method": EVIL, "options": {EVIL: EVIL}, "version": EVIL}
    save_patch(tmp_path / "p.safetensors", update, facts)
    (tmp_path / "o.json").write_text(json.dumps({f"m{EVIL}": {"options": {EVIL: EVIL}}}))
    (tmp_path / "ft.json").write_text(json.dumps({"ft": {"options": {EVIL: EVIL}}}))
    (tmp_path / "r.toml").write_text(f"base = {json.dumps(EVIL)}\n{json.dumps(EVIL)} = 1\n")
    (tmp_path / "toy.py").write_text(PLUGIN)
    bad = record(0)
    bad["requested_rewrite"] = EVIL
    (tmp_path / "c.json").write_text(json.dumps([record(1, EVIL), {**bad, EVIL: EVIL}, EVIL]))
    (tmp_path / "empty.json").write_text(json.dumps([{EVIL: EVIL}]))
    return tmp_path


FACT = ["--prompt", "{} is", "--subject", "a", "--target", "b"]
TINY = ["-m", "tiny"]
COMMANDS: dict[str, list[str]] = {
    "a patch": ["show", "p.safetensors"],
    "a patch as JSON": ["show", "p.safetensors", "--json"],
    "an applied patch": ["apply", "p.safetensors", *TINY, "-O", "out"],
    "an options file of another method": ["edit", "ft", *TINY, *FACT, "-o", "@o.json"],
    "an options file": ["edit", "ft", *TINY, *FACT, "-o", "@ft.json"],
    "an option": ["edit", "ft", *TINY, *FACT, "-o", EVIL, EVIL],
    "a recipe": ["apply", "--recipe", "r.toml", "-O", "x"],
    "a method": ["edit", EVIL, *TINY, *FACT],
    "a model": ["edit", "ft", "-m", EVIL, *FACT],
    "a fact": ["edit", "ft", *TINY, "--prompt", EVIL, "--subject", EVIL, "--target", EVIL],
    "records": ["compare", "ft", *TINY, "--cases", "c.json", "-o", "layer", "1", "--run", "r"],
    "no record": ["compare", "ft", *TINY, "--cases", "empty.json", "--run", "r"],
    "the error of a plugin": ["edit", "toy", "--plugin", "toy.py", *TINY, *FACT],
    "a failure of a plugin": [
        *("compare", "toy", "--plugin", "toy.py", *TINY, "--cases", "c.json", "--run", "r")
    ],
    "a run": ["report", f"./{EVIL}"],
    "a flag": ["show", f"--{EVIL}"],
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_no_text_of_strangers_commands_a_terminal(evil: Path, warm: tuple[str, ...]) -> None:
    marked = 0
    for name, command in COMMANDS.items():
        seen = on_a_terminal([*warm, "-c", MAIN, *command], evil)
        assert seen.strip(), name
        assert b"Traceback" not in seen, (name, seen)
        assert not [raw for raw in RAW if raw in seen], (name, seen)
        marked += b"\\x1b" in seen or b"\\u001b" in seen or b"\\\\x1b" in seen
    assert marked > len(COMMANDS) // 2, "most commands show the text, with its signs written out"
    if (evil / "out").is_dir():
        for command in (["log", "out"], ["log", "out", "--json"], ["revert", "out", "0"]):
            seen = on_a_terminal([*warm, "-c", MAIN, *command], evil)
            assert not [raw for raw in RAW if raw in seen], (command, seen)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_the_terminal_of_this_test_sees_what_is_written(tmp_path: Path) -> None:
    seen = on_a_terminal(["printf", "\\033]0;owned"], tmp_path)
    assert RAW[0] in seen
