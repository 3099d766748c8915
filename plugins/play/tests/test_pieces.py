"""The pieces of the page, the steps of work, and the playground as a notebook shows it."""

from __future__ import annotations

import shlex
from html.parser import HTMLParser
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from click.testing import CliRunner

import lmedit
from lmedit import Dense, Update
from lmedit.actions.edit import edit_one
from lmedit.cli import main
from lmedit.edits.ledger import update_digest
from lmedit.errors import RequestError
from lmedit.metrics.teacher_forcing import score_targets
from lmedit.options import build_options
from lmedit.pipeline import Editor
from lmedit.plan import Plan, Setup, set_up
from lmedit.registry import load
from lmedit.storage import installed
from lmedit.storage.steps import Step, WorkStopped, tell_step, watched
from lmedit.tiny import tiny_lm
from lmedit.types import Prepared
from lmedit_play import pieces, taking
from lmedit_play.forms import form_of
from lmedit_play.looking import Base, look_at_both
from lmedit_play.sessions import MOST, KeptEdit, Session, Sessions, seen_with
from lmedit_play.studio import MOST_EDITORS, Studio

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from lmedit import Lm
    from lmedit_play.work import Job

    Counted = Callable[[Lm], AbstractContextManager[list[int]]]

MARKUP = '<img src=x onerror="alert(1)">'


class Elements(HTMLParser):
    """The elements of a piece; a piece of ours never has one that runs code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]


@pytest.fixture(scope="module")
def lm() -> Lm:
    return tiny_lm()


REQUEST = lmedit.Request(prompt="{} is in the city of", subject="The tower", target_new="the sea")


def top(token: str) -> list[dict[str, Any]]:
    return [{"token": token, "p": 0.5}]


def test_texts_of_the_user_are_no_markup() -> None:
    answer = {"writes": MARKUP, "top": top(MARKUP)}
    look = {"kind": MARKUP, "prompt": MARKUP, "before": answer, "after": answer, "kl": 0.0}
    trace = {"tokens": [MARKUP], "subject": [0, 1], "layers": [0]}
    for html in (
        pieces.views([look], [MARKUP]),
        pieces.chips([MARKUP, MARKUP], 0, 1),
        pieces.heat(MARKUP, trace, {0: [0.1, 0.2]}),
        pieces.code(MARKUP, MARKUP),
        pieces.notes([MARKUP]),
    ):
        assert not {"img", "script"} & {*Elements(html).names}


@pytest.mark.parametrize(
    ("before", "after", "left", "right"),
    [
        ("Paris. A b", "Rome. A b", "<del>Paris.</del> A b", "<ins>Rome.</ins> A b"),
        ("Oslo. b", "Rome. b is", "<del>Oslo.</del> b", "<ins>Rome.</ins> b <ins>is</ins>"),
        ("", "x", "", "<ins>x</ins>"),
        ("a <b> c", "a c", "a <del>&lt;b&gt;</del> c", "a c"),
    ],
)
def test_differences_are_marked(before: str, after: str, left: str, right: str) -> None:
    assert pieces.mark_differences(before, after) == (left, right)


def test_a_heat_map_has_the_largest_value_darkest_and_marks_the_edited_layer() -> None:
    trace = {"tokens": ["a", "b"], "subject": [0, 1], "layers": [1]}
    html = pieces.heat("P", trace, {0: [0.1, 0.9]})
    assert 'class="h0"' in html
    assert 'class="h10 chosen"' in html
    assert html.count("unknown") == 1
    assert "token &#x27;a&#x27;, layer 1: P = 0.9000" in html


def test_the_form_has_every_option_of_an_edit_with_its_description(lm: Lm) -> None:
    loaded = load("rome")
    options = build_options(loaded.method, {"covariance": "false"}, lm)
    html = form_of(loaded, options, {"layer": "1"})
    for name, info in loaded.method.options.model_fields.items():
        assert (f'name="{name}"' in html) == (name not in loaded.method.options.probes)
        assert info.description
    assert 'name="layer" aria-describedby="help-layer" value="1"' in html
    assert "<option>r-rome</option>" in html
    Elements(html)


def test_the_steps_of_an_edit_are_told_with_the_loss_and_can_be_stopped(lm: Lm) -> None:
    loaded = load("ft")
    options = build_options(loaded.method, {"layer": "0", "steps": "4", "stop_loss": "0"}, lm)
    editor = Editor(loaded, lm, options, Prepared())
    seen: list[Step] = []
    with watched(seen.append):
        update = editor.compute(REQUEST)
    assert [(step.work, step.done, step.total) for step in seen] == [
        ("fine-tuning", n, 4) for n in (1, 2, 3, 4)
    ]
    assert seen[0].loss == pytest.approx(update.notes["loss_first"])
    assert seen[-1].loss == pytest.approx(update.notes["loss_last"])
    tell_step("nobody watches", 1)

    def stop(step: Step) -> None:
        if step.done == 2:
            raise WorkStopped

    before = lm.weights_digest()
    with pytest.raises(WorkStopped), watched(stop):
        editor.compute(REQUEST)
    assert lm.weights_digest() == before
    with pytest.raises(WorkStopped), watched(stop):  # the hooks of the model are gone too
        editor.compute(REQUEST)


def test_rome_tells_its_search_and_each_row_of_its_trace(lm: Lm) -> None:
    loaded = load("rome")
    given = {
        "covariance": "false",
        "layer": "0",
        "steps": "3",
        "stop_loss": "0",
        "trace_samples": "2",
    }
    editor = Editor(loaded, lm, build_options(loaded.method, given, lm), Prepared())
    seen: list[Step] = []
    with watched(seen.append):
        update = editor.compute(REQUEST)
        found = len(seen)
        probed = editor.probe(REQUEST, editor.locate(REQUEST))
    assert [step.done for step in seen[:found]] == [1, 2, 3]
    assert seen[0].loss == pytest.approx(update.notes["loss_first"])
    for step in seen[found:]:
        for kind, row in step.found["rows"].items():
            assert row == probed.values[f"{kind}: p"][step.found["token"]]
    assert [step.done for step in seen[found:]][-1] == len(probed.values["tokens"])


@pytest.mark.parametrize("rows", [8, 512])
def test_kn_tells_the_layers_of_its_integrals(lm: Lm, rows: int) -> None:
    from lmedit_kn.selection import asking, questions

    loaded, request = load("kn"), REQUEST.model_copy(update={"target_true": "the river"})
    options = build_options(loaded.method, {"rows": rows}, lm)
    texts = asking(request, options, lm)
    asked = sum(len(questions(lm, text, "the river", options)) for text in texts)
    seen: list[Step] = []
    with watched(seen.append):
        Editor(loaded, lm, options, Prepared()).locate(request)
    assert {(step.work, step.total) for step in seen} == {
        ("integrated gradients, layers", asked * lm.n_layers)
    }
    done = [step.done for step in seen]
    assert done == sorted(done)
    assert done[-1] == asked * lm.n_layers
    assert len(seen) == asked if rows == 512 else len(seen) > asked  # a pass, or many, for each


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("mend", "lmedit_mend"),
        ("ke", "lmedit_ke"),
        ("ultraedit", ""),
        ("malmen", "lmedit_ultraedit.malmen"),
    ],
)
def test_a_method_with_one_pass_tells_it_with_the_loss(lm: Lm, name: str, module: str) -> None:
    loaded = load(name)
    options = build_options(loaded.method, {}, lm)
    network = module and import_module(module).network_of(lm, options).state_dict()
    editor = Editor(loaded, lm, options, Prepared(network or {}))
    seen: list[Step] = []
    with watched(seen.append):
        editor.compute(REQUEST)
    (score,) = score_targets(lm, [(REQUEST.text, REQUEST.target_new)])
    (step,) = seen
    assert (step.work, step.done, step.total) == ("gradients of the answers", 1, 1)
    assert step.loss == pytest.approx(-score.log_probability, rel=1e-5)


def test_what_was_asked_once_is_not_computed_again(lm: Lm, counted: Counted) -> None:
    site, base = lm.mlp_out(0), Base(lm)
    edits = {"a": Update({site: Dense(torch.full(lm.weight(site).shape, 0.1).double())})}
    prompts = base.prompts(REQUEST, ["A small boat"])
    looks, health = look_at_both(base, prompts, edits), base.health(edits)
    with counted(lm) as passes:
        assert look_at_both(base, prompts, edits) == looks
        assert base.health(edits) == health
        base.prompts(REQUEST, [])
    assert passes == []
    with counted(lm) as passes:  # a text more: it alone is asked
        more = look_at_both(base, prompts | {"your text 2": "The river"}, edits)
    assert more[:-1] == looks
    assert set(passes) == {1}
    with counted(lm) as passes:  # without edits, the model is asked again: it shows the weights
        again = look_at_both(base, prompts, {})
    assert passes
    assert [each["after"] for each in again] == [each["before"] for each in looks]


def test_an_edit_after_a_look_is_that_of_the_command(lm: Lm, tmp_path: Path) -> None:
    loaded, base = load("ft"), Base(lm)
    options = build_options(loaded.method, {"layer": "0", "learning_rate": "0.05"}, lm)
    editor = Editor(loaded, lm, options, Prepared())
    alone = edit_one(editor, REQUEST, tmp_path / "a.safetensors", force=True)
    for name in ("b", "c"):
        looking = base.looking(REQUEST)
        found = edit_one(
            editor, REQUEST, tmp_path / f"{name}.safetensors", force=True, looking=looking
        )
        apart = {"seconds", "patch"}
        assert {k: v for k, v in found.items() if k not in apart} == {
            k: v for k, v in alone.items() if k not in apart
        }


class Quiet:
    """A job that nobody watches."""

    def note(self, text: str) -> None:
        """Forget *text*."""


def test_the_last_editors_stay_and_no_more(lm: Lm) -> None:
    studio, job = Studio(Setup(Plan(methods=("ft",)), (load("ft"),), lm)), cast("Job", Quiet())
    first = studio.editor("ft", {"layer": "0"}, job)
    assert studio.editor("ft", {"layer": "0"}, job) is first
    others = [studio.editor("ft", {"layer": "0", "steps": str(n)}, job) for n in range(1, 5)]
    assert len({id(each) for each in [first, *others]}) == MOST_EDITORS + 1
    assert studio.editor("ft", {"layer": "0", "steps": "4"}, job) is others[-1]
    assert studio.editor("ft", {"layer": "0"}, job) is not first


def test_edits_that_are_on_are_seen_together_and_the_weights_stay(lm: Lm) -> None:
    site = lm.mlp_out(0)
    torch.manual_seed(0)
    one, two = (Update({site: Dense(0.05 * torch.randn(lm.weight(site).shape))}) for _ in range(2))
    before = lm.weights_digest()
    with seen_with(lm, [one, two]) as edits:
        assert edits is not None
        assert lm.weights_digest() == before
        (change,) = edits.changes[site].values()
        assert torch.equal(change.dense(), one.deltas[site].dense() + two.deltas[site].dense())
    with seen_with(lm, []) as edits:
        assert edits is None


def test_in_half_precision_edits_are_in_the_weights_for_the_block_alone() -> None:
    half = tiny_lm()
    half.model.bfloat16()
    site = half.mlp_out(0)
    update = Update({site: Dense(torch.ones(half.weight(site).shape))})
    before = half.weights_digest()
    with seen_with(half, [update]) as edits:
        assert edits is None
        assert half.weights_digest() != before
    assert half.weights_digest() == before


def test_sessions_are_apart_and_the_oldest_is_forgotten() -> None:
    known = Sessions()
    first = known.of("0" * 32)
    path = first.place("a.txt")
    path.write_text("a")
    key = first.offer(path).removeprefix("file/")
    assert known.file(key) == path
    assert first.shorten(f"cannot read {path}: no") == "cannot read a.txt: no"
    for number in range(1, MOST):
        known.of(f"{number:032x}")
    assert known.of("0" * 32) is first
    for number in range(MOST, 2 * MOST):
        known.of(f"{number:032x}")
    assert known.file(key) is None
    assert not path.exists()
    known.close()
    with pytest.raises(RequestError, match="no session"):
        known.of("x")
    Session().close()


def test_without_the_distribution_one_line_says_how_to_install_it(
    lm: Lm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "declarations_of", lambda _: [])
    editor = Editor(load("ft"), lm, build_options(load("ft").method, {}, lm), Prepared())
    with pytest.raises(RequestError, match=r"pip install lmedit-play$"):
        editor.play(REQUEST)


def test_a_notebook_shows_the_edit_and_the_model_is_as_it_was(lm: Lm) -> None:
    loaded = load("ft")
    options = build_options(loaded.method, {"layer": "0", "learning_rate": "0.05"}, lm)
    editor = Editor(loaded, lm, options, Prepared())
    before = lm.weights_digest()
    played = editor.play(REQUEST)
    assert lm.weights_digest() == before
    assert played.digest == update_digest(editor.compute(REQUEST))
    html = played._repr_html_()
    assert {"style", "ol", "article", "table", "svg"} <= {*Elements(html).names}
    assert "verdict: " in html
    assert played.digest[:12] in html
    assert str(played).splitlines()[-1].startswith("verdict: ")


def test_the_lines_hold_what_was_given_to_play_too(tmp_path: Path) -> None:
    """The same edit as the page's: with its options, seed, joint and number type."""
    folder, small = tmp_path / "tiny", tiny_lm()
    small.model.save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)
    plan = Plan(
        methods=("ft",),
        model=str(folder),
        dtype="float64",
        options=(("ft.steps", "3"), ("learning_rate", "0.01")),
        seed=7,
        join="none",
    )
    studio = Studio(set_up(plan))
    typed = {"layer": "2"}
    loaded = studio.method("ft")
    options = studio.setup.options(loaded, **typed)
    editor = Editor(loaded, studio.lm, options, Prepared())
    update = editor.compute(REQUEST)
    facts = {"method": "ft", "request": REQUEST.model_dump(), "forced": "weak"}
    edit = KeptEdit(update_digest(update), update, facts, tmp_path / "p", {}, typed)
    values: dict[str, Any] = {}
    exec(taking.python(studio, [edit]), values)
    assert update_digest(values["updates"][0]) == edit.id
    words = shlex.split(taking.shell(studio, [edit], "patch", ""))
    out = tmp_path / words[-1]
    done = CliRunner().invoke(main, [*words[1:-1], str(out)])
    assert out.is_file(), done.output
    assert update_digest(lmedit.load_patch(out)[0]) == edit.id
