"""Every figure of a comparison on the embedded model, computed a second time without lmedit.

The second computation knows transformers, numpy and the formulas alone: no batches, no cache, no
padding, weights edited by hand, one token at a time. Only a held-out line is one plain pass; a test
compares it with passes that are cut after each token. Only the updates come from the methods.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmedit import build_options, load, load_lm, prepare
from lmedit.cases import corpus_of, load_cases
from lmedit_demo import WORLD

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]
    Figures = dict[str, float]

pytestmark = pytest.mark.slow
CASES = 4
LINES = 5


class Second:
    """The model as transformers loads it, and the formulas."""

    def __init__(self) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(WORLD.model).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(WORLD.model)
        self.known: dict[tuple[int, ...], np.ndarray[Any, Any]] = {}

    def load(self, weights: dict[str, Any]) -> None:
        """Put *weights* into the model."""
        self.model.load_state_dict(weights)
        self.known.clear()

    def logs(self, ids: list[int]) -> np.ndarray[Any, Any]:
        """log P of the next token after *ids*; what was computed for these weights is kept."""
        if tuple(ids) not in self.known:
            self.known[tuple(ids)] = self._logs(ids)
        return self.known[tuple(ids)]

    def _logs(self, ids: list[int]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = log_softmax(self._logits(ids)[-1:])[0]
        return found

    def all_logs(self, ids: list[int]) -> np.ndarray[Any, Any]:
        """(token, V) log P of the next token after each of *ids*, from one plain pass."""
        found: np.ndarray[Any, Any] = log_softmax(self._logits(ids))
        return found

    @torch.no_grad()
    def _logits(self, ids: list[int]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self.model(torch.tensor([ids])).logits[0].double().numpy()
        return found

    def target(self, prompt: str, target: str) -> tuple[float, bool]:
        """Geometric mean probability of the target's tokens, and whether all are top-1."""
        ids, logs, top = self.tokenizer(prompt).input_ids, [], True
        for token in self.tokenizer(f" {target}").input_ids:
            after = self.logs(ids)
            logs.append(after[token])
            top = top and int(after.argmax()) == token
            ids = [*ids, token]
        return math.exp(sum(logs) / len(logs)), top

    def written(self, prompt: str) -> str:
        ids = self.tokenizer(prompt).input_ids
        start = len(ids)
        while len(ids) < start + 20 and ids[-1] != self.tokenizer.eos_token_id:
            ids = [*ids, int(self.logs(ids).argmax())]
        return str(self.tokenizer.decode(ids[start:], skip_special_tokens=True))

    def heldout(self) -> list[np.ndarray[Any, Any]]:
        """For each held-out line (token + 1, V) log-probabilities, the true tokens last."""
        lines = WORLD.heldout.read_text(encoding="utf-8").splitlines()[:LINES]
        found = []
        for line in lines:
            ids = self.tokenizer(line).input_ids
            rows = self.all_logs(ids[:-1])
            found.append(np.concatenate([rows, np.array(ids[1:])[:, None]], axis=1))
        return found


def log_softmax(logits: np.ndarray[Any, Any]) -> Any:
    """(token, V) of log P."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def words(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'()")


def figures(second: Second, case: Any, base: dict[str, Any]) -> Figures:
    """The scores of one case on the model as it is."""
    r = case.request

    def contrast(prompts: list[str]) -> tuple[float, float]:
        pairs = [
            (second.target(p, r.target_new)[0], second.target(p, r.target_true)[0]) for p in prompts
        ]
        return (
            float(np.mean([new > true for new, true in pairs])),
            float(np.mean([new - true for new, true in pairs])),
        )

    text = r.prompt.replace("{}", r.subject)
    found: Figures = {}
    found["ES"], found["EM"] = contrast([text])
    found["PS"], found["PM"] = contrast(list(case.paraphrases))
    wins, margin = contrast(list(case.neighbours))
    found["NS"], found["NM"] = 1 - wins, -margin
    wins, margin = contrast([f"{text} {r.target_new}. {p}" for p in case.neighbours])
    found["NS_plus"], found["NM_plus"] = 1 - wins, -margin
    right = [second.target(p.prompt, p.answer)[1] for p in case.relations]
    found["relation_specificity"] = float(np.mean(right))
    said = words(second.written(text))
    found["exact_match"] = float(said == words(r.target_new))
    found["contains"] = float(f" {words(r.target_new)} " in f" {said.replace('.', ' ')} ")
    found["teacher_forced"] = float(second.target(text, r.target_new)[1])
    found["generation_gap"] = found["teacher_forced"] - found["contains"]
    nexts = [second.logs(second.tokenizer(p).input_ids) for p in case.neighbours]
    found["neighbour_KL"] = float(
        np.mean([(np.exp(b) * (b - n)).sum() for b, n in zip(base[case.id], nexts, strict=True)])
    )
    now = second.heldout()
    losses = [-row[int(row[-1])] for line in now for row in line]
    moved = [
        (np.exp(b[:-1]) * (b[:-1] - n[:-1])).sum()
        for one, other in zip(base["heldout"], now, strict=True)
        for b, n in zip(one, other, strict=True)
    ]
    found["perplexity"], found["KL"] = math.exp(np.mean(losses)), float(np.mean(moved))
    return found


@pytest.fixture(scope="module")
def shared() -> dict[str, Any]:
    """What the tests share; the first one fills it."""
    return {}


@pytest.mark.parametrize("method", ["base", "ft", "rome"])
def test_every_figure_is_confirmed(
    lmedit: Run, method: str, shared: dict[str, Any], demo_is_prepared: None
) -> None:
    if not shared:
        shared |= compare_both(lmedit)
    row, cases = shared["rows"][method], load_cases("demo", CASES).good
    second, base = shared["second"], shared["base"]
    compute = updates_of(method)
    found = [edited(second, compute, case, base) for case in cases]
    for name in found[0]:
        values = np.array([figure[name] for figure in found])
        scale = (
            1
            if name in {"perplexity", "KL", "neighbour_KL", "relative_norm", "spectral_growth"}
            else 100
        )
        assert row[name] == pytest.approx(scale * values.mean(), rel=1e-3, abs=2e-3), name
        half = scale * 1.96 * values.std() / math.sqrt(CASES)
        assert row[f"{name}_ci"] == pytest.approx(half, rel=2e-3, abs=2e-3), name
    parts = [np.mean([figure[name] for figure in found]) for name in ("ES", "PS", "NS")]
    expected = 0.0 if min(parts) == 0 else 300 / sum(1 / part for part in parts)
    assert row["S"] == pytest.approx(expected)


def compare_both(lmedit: Run) -> dict[str, Any]:
    """The rows of one comparison, the second computation, and its results on the base."""
    groups = [part for name in ("generation", "locality", "health") for part in ("--metrics", name)]
    flags = ("--limit", CASES, *groups, "--heldout-lines", LINES, "--json")
    rows = json.loads(lmedit("compare", "ft", "rome", *flags).stdout)["rows"]
    second = Second()
    base: dict[str, Any] = {
        case.id: [second.logs(second.tokenizer(p).input_ids) for p in case.neighbours]
        for case in load_cases("demo", CASES).good
    }
    base["heldout"] = second.heldout()
    return {"rows": {row["method"]: row for row in rows}, "second": second, "base": base}


def updates_of(method: str) -> Callable[[Any], Any] | None:
    """A function that returns the method's update for a request; None for the unedited model."""
    if method == "base":
        return None
    lm = load_lm("demo")
    loaded = load(method)
    options = build_options(loaded.method, {}, lm)
    return prepare(loaded, lm, options, corpus_of(None, lm.text)).compute


def edited(
    second: Second, compute: Callable[[Any], Any] | None, case: Any, base: dict[str, Any]
) -> Figures:
    """The figures of one case, on the model with the method's update put in by hand."""
    if compute is None:
        return figures(second, case, base)
    update = compute(case.request)
    before = {name: value.clone() for name, value in second.model.state_dict().items()}
    norms, growths, after = [], [], dict(before)
    for site, delta in update.deltas.items():
        change = delta.dense().numpy()
        old = before[site.parameter].numpy()
        change = change.T if site.transposed else change.reshape(old.shape)
        after[site.parameter] = torch.from_numpy(old + change)
        norms.append(np.linalg.norm(change) / np.linalg.norm(old))
        matrix = [np.linalg.norm(m.reshape(len(m), -1), 2) for m in (old + change, old)]
        growths.append(matrix[0] / matrix[1])
    second.load(after)
    found = figures(second, case, base)
    found |= {"relative_norm": float(max(norms)), "spectral_growth": float(max(growths))}
    second.load(before)
    return found


def test_a_pass_over_a_line_is_as_if_it_were_cut_after_each_token() -> None:
    second = Second()
    line = WORLD.heldout.read_text(encoding="utf-8").splitlines()[0]
    ids = second.tokenizer(line).input_ids[:-1]
    alone = np.stack([second.logs(ids[:place]) for place in range(1, len(ids) + 1)])
    assert len(ids) > 20
    np.testing.assert_allclose(second.all_logs(ids), alone, atol=1e-4)


def test_entropy_is_that_of_a_plain_count() -> None:
    """GE on texts of known n-grams, by a loop of its own."""
    from lmedit.metrics.generated_text import fluency

    text = "the sea, the sea, the river and the sea"
    cut = ["the", "sea", ",", "the", "sea", ",", "the", "river", "and", "the", "sea"]

    def bits(n: int) -> float:
        counts = Counter(tuple(cut[i : i + n]) for i in range(len(cut) - n + 1))
        shares = np.array(list(counts.values())) / sum(counts.values())
        return float(-(shares * np.log2(shares)).sum())

    assert fluency(text) == pytest.approx(bits(2) / 3 + 2 * bits(3) / 3)
