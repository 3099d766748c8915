"""The page in a real browser: the whole trip, two tabs, a stop, a broken plugin, a reload."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
import zipfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from click.testing import CliRunner

import lmedit
from lmedit.cli import main
from lmedit.edits.ledger import update_digest
from lmedit.edits.patches import load_patch
from lmedit.edits.recipes import read_recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from playwright.sync_api import Browser, Download, Page

    from lmedit import Lm

    Open = Callable[..., "Tab"]

pytestmark = pytest.mark.slow
FACT = {
    "prompt": "{} is in the city of",
    "subject": "The Eiffel Tower",
    "target": "Rome",
    "true": "Paris",
}
BASE = "13b48374a7e2"
"""The beginning of the digest of the embedded model's weights."""
LONGEST = 120_000
"""Milliseconds after which the browser gives up. An act takes seconds."""
PICTURES = os.environ.get("LMEDIT_PLAY_PICTURES")
"""A folder for the screenshots of the docs, from `docs/make_pictures.py`; unset: none are made."""

COUNT_UNFINISHED = """() => {
    window.unfinished = 0;
    const unfinished = (node) => node.nodeType === 1 && node.querySelector('.unknown');
    const see = (changes) => {
        const added = changes.flatMap((change) => [...change.addedNodes]);
        if (added.some(unfinished)) window.unfinished += 1;
    };
    new MutationObserver(see).observe(document.getElementById('heat'), { childList: true });
}"""
"""Count in the page how often a heat map with unknown rows is put into it.

A test that looks from outside misses such a map when the trace is faster than the look.
"""


class Tab:
    """A tab of the playground; what a person does there."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.complaints, self.outside = page, list[str](), list[str]()
        page.set_default_timeout(LONGEST)
        page.on("console", lambda told: self.complaints.append(f"{told.type}: {told.text}"))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda asked: self._see(asked.url, address))
        page.goto(address)
        self.wait_ready()

    def _see(self, url: str, address: str) -> None:
        if not url.startswith((address.partition("?")[0], "data:", "blob:")):
            self.outside.append(url)

    def wait_ready(self) -> None:
        self.page.locator("body[data-ready=yes][aria-busy=false]").wait_for()

    def fill(self, **values: str) -> None:
        for name, value in {**FACT, **values}.items():
            self.page.locator(f"#{name}").fill(value)

    def act(self, selector: str) -> str:
        """Click, wait for the end of the act, and return what the status line says."""
        self.page.locator(selector).click()
        return self.wait_done()

    def wait_done(self) -> str:
        self.page.locator("body[aria-busy=false]").wait_for()
        return self.text("#status")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def edit(self, **values: str) -> str:
        self.fill(**values)
        self.act("#do-edit")
        return self.text("#verdict")

    def digests(self) -> list[str]:
        found = self.page.locator("[data-switch]").all()
        return [str(each.get_attribute("data-switch")) for each in found]

    def take(self, form: str, folder: Path) -> Path:
        self.page.locator("#form").select_option(form)
        assert ": " in self.act("#do-take"), self.text("#error")
        with self.page.expect_download() as waiting:
            self.page.locator("#file").click()
        download: Download = waiting.value
        path = folder / download.suggested_filename
        download.save_as(path)
        return path


@pytest.fixture
def tab(chromium: Browser, address: str) -> Iterator[Open]:
    """Open tabs, each in a context of its own; none may complain or ask another host."""
    opened = []

    def open_tab(at: str = address, **how: Any) -> Tab:
        context = chromium.new_context(**how)
        opened.append(Tab(context.new_page(), at))
        return opened[-1]

    yield open_tab
    for each in opened:
        each.page.context.close()
    assert [each.complaints for each in opened] == [[]] * len(opened)
    assert [each.outside for each in opened] == [[]] * len(opened)


@pytest.fixture
def here(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of this test run in its own folder, with the cache of the server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LMEDIT_CACHE", str(prepared))
    return tmp_path


def python_digest(source: str, lm: Lm, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest of the first edit that *source*, the page's Python lines, computes.

    They ask for the embedded model, and get *lm*, which is loaded already.
    """
    monkeypatch.setattr(lmedit, "load_lm", {"demo": lm}.__getitem__)
    values: dict[str, Any] = {}
    exec(source, values)
    return update_digest(values["updates"][0])


def test_the_whole_trip(
    tab: Open, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tab()
    page = there.page

    # Fact: an example of the world, and its tokens.
    first = page.locator("#example option").nth(1)
    page.locator("#example").select_option(value=first.get_attribute("value"))
    there.wait_done()
    assert "{}" in page.locator("#prompt").input_value()
    there.fill()
    there.act("#tokens")
    assert page.locator("#chips .subject code").all_inner_texts() == ["The", "␣Eiffel"]
    assert there.text("#chips .last code") == "␣Tower"
    assert "the subject's last token" in there.text("#chips .last")

    # Where: the heat map grows, the tuned layer is marked, a cell can be read.
    page.evaluate(COUNT_UNFINISHED)
    there.act("#trace")
    assert page.evaluate("unfinished") > 0
    assert page.locator("#heat td.unknown").count() == 0
    assert page.locator("#heat [role=grid]").count() == 3
    assert set(page.locator("#heat th.chosen").all_inner_texts()) == {"2"}
    assert "rome edits layer 2 (tuned)" in there.text("#heat")
    cell = page.locator("#heat [role=grid]").first.locator("tr").nth(3).locator("td").nth(2)
    cell.click()
    said = there.text("#cell")
    assert re.fullmatch(r"P\(Paris\) .*: token 'Tower', layer 2: P = 0\.\d{4}", said), said
    page.keyboard.press("ArrowRight")
    assert "layer 3" in there.text("#cell")

    # Edit: the digest is that of the library.
    assert "verdict: took (the model now writes the whole target)" in there.edit()
    assert "P(Rome): 0.024 -> 0.896" in there.text("#verdict")
    assert re.search(r"loss \d\.\d+ → 0\.\d+ in \d+ steps", there.text("#loss-said"))
    lm = lmedit.load_lm("demo")
    request = lmedit.Request(
        prompt=FACT["prompt"],
        subject=FACT["subject"],
        target_new="Rome",
        target_true="Paris",
    )
    (digest,) = there.digests()
    assert digest == update_digest(lmedit.editor("rome", lm).compute(request))

    # Before and after, with a text of the user's own.
    kinds = page.locator("#views .kind").all_inner_texts()
    assert kinds == ["prompt", "paraphrase", "neighbour", "neighbour 2", "another fact"]
    assert page.locator(".view del").first.inner_text() == "Paris."
    assert page.locator(".view ins").first.inner_text() == "Rome."
    assert page.locator(".view").first.locator("rect").count() == 10
    page.locator("#text").fill("The Louvre is in the city of")
    there.act("#ask")
    assert page.locator("#views .kind").all_inner_texts()[-1] == "your text 1"

    if PICTURES:
        make_pictures(there, Path(PICTURES))

    # Stack: a second edit by another method; switches in any order; the base, bit for bit.
    page.locator("#method").select_option("ft")
    there.wait_done()
    there.edit(target="Berlin")
    assert len(there.digests()) == 2
    there.act(f"[data-switch='{digest}']")
    assert "1 of 2 edits are on" in there.text("#state")
    assert page.locator(".view .writes").nth(1).inner_text().startswith("Berlin")
    said = there.act("#verify")
    assert said.startswith(
        f"all off: the base, bit for bit (SHA-256 of all weights {BASE}, as loaded)"
    )
    before, after = page.locator(".view .writes").all_inner_texts()[:2]
    assert before == after
    there.act(f"[data-switch='{digest}']")
    assert page.locator(".view .writes").nth(1).inner_text().startswith("Rome")

    # Compare: the numbers of `lmedit compare` for this case.
    there.fill()
    there.act("#do-compare")
    rows = page.locator("#table tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["method", "base", "rome", "ft"]
    assert rows[0].split()[:4] == ["method", "n", "failed", "S"]
    assert page.locator("#table tr", has_text="rome").locator("td").nth(2).inner_text() == "0"

    # Take it with you: files and lines that give the same edit.
    patch = there.take("patch", here)
    assert update_digest(load_patch(patch)[0]) == digest
    shell, python = page.locator("#lines pre").all_inner_texts()
    capsys.readouterr()
    assert python_digest(python, lm, monkeypatch) == digest
    assert capsys.readouterr().out == " Rome\n"
    check_shell(shell, digest, here)
    with zipfile.ZipFile(there.take("recipe", here)) as packed:
        packed.extractall(here / "recipe")
    assert read_recipe(here / "recipe" / "recipe.toml").edit[0].id == digest
    with zipfile.ZipFile(there.take("adapter", here)) as packed:
        assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(
            packed.namelist()
        )
    assert there.take("gguf-lora", here).read_bytes()[:4] == b"GGUF"


def check_shell(line: str, digest: str, here: Path) -> None:
    """Run the page's command; its patch must hold the edit *digest*."""
    import shlex

    words = shlex.split(line)
    assert words[0] == "lmedit"
    done = CliRunner().invoke(main, words[1:])
    assert done.exit_code == 0, done.output
    assert update_digest(load_patch(here / words[-1])[0]) == digest


def test_what_the_page_never_sends_is_refused(address: str) -> None:
    own = {"X-Lmedit-Session": "1" * 32}

    def post(path: str, body: bytes, headers: Mapping[str, str] = own) -> tuple[int, str]:
        asked = urllib.request.Request(f"{address}{path}", body, dict(headers))
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, answer.read().decode().splitlines()[-1]
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert post("act/state", b"{}") == (
        200,
        json.dumps({"done": {"html": {}, "fact": None, "texts": []}}),
    )
    assert post("act/nothing", b"{}")[0] == 404
    assert post("act/state", b"[]")[0] == 400
    assert post("act/state", b"{")[0] == 400
    assert post("act/state", b" " * 1_000_001)[0] == 400
    assert post("act/state", b"{}", {"X-Lmedit-Session": "../.."})[0] == 400
    assert post("act/state", b"{}", {})[0] == 403
    assert post("stop/unknown", b"") == (200, '{"found":false}')
    for path in ("server.py", "%2e%2e/server.py", "file/..%2f..%2fetc%2fpasswd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}{path}", timeout=60)
    told = post("act/edit", json.dumps({"prompt": "a", "target": "b", "method": "no"}).encode())[1]
    assert "no method 'no' among" in told
    gone = {"edit": "0" * 64, "on": True}
    assert "no edit '000000000000' in this tab" in post("act/switch", json.dumps(gone).encode())[1]
    assert "no edit is on" in post("act/take", b"{}")[1]
    asked = {"prompt": "The Louvre is in the city of", "target": "Rome", "methods": []}
    assert "no method is chosen" in post("act/compare", json.dumps(asked).encode())[1]


def test_two_tabs_and_a_reload(tab: Open, tmp_path: Path) -> None:
    one, two = tab(), tab()
    one.edit()
    two.fill()
    two.act("#ask")
    texts = two.page.locator(".view .writes").all_inner_texts()
    assert texts[0].startswith("Paris")
    assert texts[::2] == texts[1::2]
    assert two.digests() == []
    assert len(one.digests()) == 1

    one.page.reload()
    one.wait_ready()
    assert len(one.digests()) == 1
    assert one.page.locator("#subject").input_value() == FACT["subject"]
    assert one.page.locator(".view .writes").nth(1).inner_text().startswith("Rome")

    # A patch goes from tab to tab as a file; a damaged one is refused as in a terminal.
    patch = one.take("patch", tmp_path)
    two.page.locator("#patch").set_input_files(patch)
    two.page.locator("[data-switch]").wait_for()
    assert two.digests() == one.digests()
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(patch.read_bytes()[:-3])
    two.page.locator("#patch").set_input_files(wrong)
    two.page.locator("#error", has_text="Error").wait_for()
    shown = CliRunner().invoke(main, ["show", str(wrong)])
    assert two.text("#error") == shown.stderr.strip().replace(str(wrong), wrong.name)
    two.act("[data-remove]")
    assert two.digests() == []


def test_a_stopped_edit_leaves_the_model_as_it_was(tab: Open) -> None:
    there = tab()
    page = there.page
    page.locator("#method").select_option("ft")
    there.wait_done()
    page.locator("summary").click()
    page.locator("#option-steps").fill("100000")
    page.locator("#option-stop_loss").fill("0")
    there.fill()
    page.locator("#do-edit").click()
    page.locator("#loss-said", has_text="steps").wait_for()
    page.locator("#stop").click()
    page.locator("#status", has_text="stopped").wait_for()
    assert there.text("#status") == "stopped; the model is as it was, bit for bit"
    assert there.digests() == []
    assert BASE in there.act("#verify")


def test_a_broken_plugin_is_the_sentence_of_the_terminal(
    tab: Open, here: Path, broken: Path
) -> None:
    there = tab()
    there.fill(true="")
    there.page.locator("#method").select_option("broken")
    there.wait_done()
    there.act("#do-edit")
    told = there.text("#error")
    fact = ("--prompt", FACT["prompt"], "--subject", FACT["subject"], "--target", "Rome")
    flags = ("--plugin", str(broken), "--no-isolate")
    done = CliRunner().invoke(main, ["edit", "broken", *fact, *flags])
    assert told == done.stderr.strip().splitlines()[-1]
    assert "edit_compute raised ValueError: <b>it</b> cannot (broken.py, line " in told
    there.page.locator("#method").select_option("mend")
    there.wait_done()
    assert "verdict: took" in there.edit()


def test_everything_is_reached_by_keyboard_at_every_width(tab: Open) -> None:
    from axe_playwright_python.sync_playwright import Axe

    there = tab(viewport={"width": 400, "height": 800}, reduced_motion="reduce")
    page = there.page
    page.locator("#prompt").focus()
    for value in FACT.values():
        page.keyboard.type(value)
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the button behind the fields
    page.locator("#chips .last").wait_for()
    there.wait_done()
    for wanted in ("trace", "method", "force", "do-edit"):
        tab_to(page, wanted)
    page.keyboard.press("Enter")
    page.locator("[data-switch]").wait_for()
    there.wait_done()
    tab_to(page, page.locator("[data-switch]").get_attribute("id"))
    page.keyboard.press("Space")
    page.locator("#state", has_text="0 of 1").wait_for()
    there.wait_done()
    there.act("#trace")
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for width, scheme in product((400, 1000, 1600), schemes):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.set_viewport_size({"width": width, "height": 900})
        wide = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1] == width
        found = Axe().run(page).response["violations"]
        assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []


def tab_to(page: Page, wanted: str | None) -> None:
    """Press Tab until the element *wanted* has the focus."""
    for _ in range(60):
        if page.evaluate("document.activeElement.id") == wanted:
            return
        page.keyboard.press("Tab")
    pytest.fail(f"Tab does not reach {wanted}")


def make_pictures(there: Tab, folder: Path) -> None:
    """The screenshots of the docs, as `docs/make_pictures.py` asks for them."""
    page = there.page
    page.set_viewport_size({"width": 1200, "height": 1000})
    page.evaluate("document.getElementById('bar').style.position = 'static'")
    bottom = "document.getElementById('edits').getBoundingClientRect().bottom + window.scrollY"
    top = {"x": 0, "y": 0, "width": 1200, "height": page.evaluate(bottom) + 10}
    page.screenshot(path=folder / "play.png", full_page=True, clip=top)
    page.locator("#both").screenshot(path=folder / "play-both.png")
