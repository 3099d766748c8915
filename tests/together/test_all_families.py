"""All methods on a tiny model of every family: prepare, locate, compute, apply, revert."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import build_options, load
from lmedit.pipeline import Editor, prepare
from lmedit.stats import Counting, second_moments
from lmedit.storage.tensors import Checkpoint
from lmedit.testing import Records, Texts
from lmedit.tiny import FAMILIES, tiny_family
from lmedit.types import Request

if TYPE_CHECKING:
    from pathlib import Path

    from lmedit import Lm

TRAINED = {"steps": 2, "validate_every": 2, "batch": 2}
SEARCHED: dict[str, Any] = {
    "prefixes": [[3, 2]],
    "steps": 6,
    "decay": 0.0,
    "kl_factor": 0.0,
    "learning_rate": 0.1,
}
QUICK: dict[str, dict[str, Any]] = {
    "rome": {
        "prefixes": [[3, 2]],
        "steps": 4,
        "samples": 20,
        "ridge": 0.1,
        "trace_samples": 2,
        "decay": 0.0,
        "kl_factor": 0.0,
    },
    "ft": {"steps": 4, "learning_rate": 0.05},
    "ft-l": {"steps": 4, "learning_rate": 0.05, "epsilon": 0.05},
    "kn": {},
    "mend": {**TRAINED, "rank": 8},
    "ke": {**TRAINED, "hidden": 8, "condition": 8},
    "memit": {**SEARCHED, "damping": 0.1, "layers": [0, 1]},
    "emmet": {**SEARCHED, "damping": 0.1, "layer": 1},
    "alphaedit": {**SEARCHED, "layers": [0, 1], "threshold_share": 0.2},
    "ultraedit": {"layers": [0, 1], "edit_rate": 0.05, "warm_up": 20},
    "malmen": {**TRAINED, "rank": 8, "edit_rate": 0.05},
}
OPTIMISED = {"rome", "ft", "ft-l", "memit", "emmet", "alphaedit"}
REQUESTS = {
    "several tokens": Request(
        prompt="{} is in the city of",
        subject="The old tower by the sea",
        target_new="the river home",
    ),
    "one token": Request(prompt="In the city {} stands by the", subject="a", target_new="e"),
    "subject at the end": Request(prompt="Nobody knew {}", subject="the tower", target_new="it"),
    "Cyrillic": Request(prompt="{} находится в городе", subject="Башня", target_new="Рим"),
    "Chinese": Request(prompt="{}位于", subject="埃菲尔铁塔", target_new="罗马"),
    "Arabic": Request(prompt="يقع {} في", subject="البرج", target_new="روما"),
    "Devanagari": Request(prompt="{} कहाँ है:", subject="मीनार", target_new="रोम"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))


@cache
def made(family: str, dtype: torch.dtype, *changes: tuple[str, Any]) -> Lm:
    """A tiny model for several methods: each must leave it as it was."""
    return tiny_family(family, dtype, **dict(changes))


@cache
def editor_of(lm: Lm, method: str) -> Editor:
    """An editor for several requests: it is prepared once for each model."""
    loaded = load(method)
    options = build_options(loaded.method, QUICK[method], lm)
    material: Any = Records() if loaded.method.prepares_on == "cases" else Texts()
    return prepare(loaded, lm, options, material)


def edited_and_reverted(editor: Editor, request: Request) -> None:
    """The edit changes the model, what is optimised gets better, and the base comes back."""
    lm = editor.lm
    before = lm.weights_digest()
    assert before == lm.digest
    update = editor.compute(request)
    assert lm.weights_digest() == before
    if editor.name in OPTIMISED:
        # On this model, rounding to bfloat16 hides what the few quick steps gain.
        hidden = lm.model_type == "gemma3_text" and lm.model.dtype == torch.bfloat16
        slack = 1e-4 if hidden and editor.name in {"memit", "emmet", "alphaedit"} else 0.0
        assert update.notes["loss_last"] < update.notes["loss_first"] * (1 + slack)
    with editor.applied(update):
        assert lm.weights_digest() != before
        assert bool(lm.next_probabilities(request.text).isfinite().all())
    assert lm.weights_digest() == before == lm.digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", QUICK)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_edits_every_family(family: str, method: str, dtype: torch.dtype) -> None:
    lm = made(family, dtype)
    edited_and_reverted(editor_of(lm, method), REQUESTS["several tokens"])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("method", QUICK)
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_the_head_may_be_tied_or_not(family: str, method: str, tied: bool) -> None:
    lm = made(family, torch.float32)
    if (lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight) != tied:
        lm = made(family, torch.float32, ("tie_word_embeddings", tied))
    head = lm.model.get_output_embeddings().weight
    assert (head is lm.model.get_input_embeddings().weight) == tied
    edited_and_reverted(editor_of(lm, method), REQUESTS["several tokens"])


@pytest.mark.parametrize("words", REQUESTS)
@pytest.mark.parametrize("method", QUICK)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_script_and_length_is_edited(family: str, method: str, words: str) -> None:
    lm = made(family, torch.float32)
    edited_and_reverted(editor_of(lm, method), REQUESTS[words])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_facts_are_traced_and_statistics_counted(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    lm = made(family, dtype)
    editor, request = editor_of(lm, "rome"), REQUESTS["several tokens"]
    probed = editor.probe(request, editor.locate(request))
    assert probed.charts
    moments = second_moments(
        lm, range(lm.n_layers), Texts(), Counting(20), Checkpoint(tmp_path / "state")
    )
    for moment in moments.values():
        assert moment.tokens > 100
        assert bool((torch.linalg.eigvalsh(moment.sum) > -1e-3).all())


@pytest.mark.parametrize("method", ["rome", "ft"])
@pytest.mark.parametrize("family", FAMILIES)
def test_together_is_as_if_alone(family: str, method: str) -> None:
    """Rows of several requests, padded beside each other; rotary positions round in float32."""
    lm = made(family, torch.float64)
    editor = editor_of(lm, method)
    requests = [REQUESTS[name] for name in ("several tokens", "one token", "Cyrillic")]
    for request, update in zip(requests, editor.compute_many(requests), strict=True):
        alone = editor.compute(request)
        for site, delta in alone.deltas.items():
            apart = (update.deltas[site].dense() - delta.dense()).norm()
            assert apart <= 1e-5 * delta.dense().norm()
