"""Operations of each method, which do not wobble as times do: how many our ways save.

Small models, so that the counts are quick. Each least saving is a tenth below the one counted when
it was written. A change that runs more than before fails here.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmedit import Editor, Prepared, Request, build_options, load
from lmedit.cases import load_cases
from lmedit.tiny import tiny_family, tiny_lm
from lmedit.values.contexts import sample_contexts
from lmedit.values.rows import rows_of
from lmedit.values.search import optimise_values
from lmedit_demo import WORLD
from lmedit_kn.equations import path
from lmedit_kn.staircase import attributions
from lmedit_memit.equations import combination
from lmedit_rome.keys import select_keys
from lmedit_rome.restoring import STATE, TraceSettings
from lmedit_rome.tracing import trace

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parents[2] / "benchmarks"
FACT = Request(
    prompt="{} is in the city of", subject="The old tower", target_new="Rome", target_true="Oslo"
)


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain forms lie beside the benchmarks and the plugins' tests."""
    monkeypatch.syspath_prepend(str(FOLDER))


def count(work: Callable[[], Any]) -> int:
    """Floating-point operations of *work*."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def plain_of(plugin: str, name: str) -> Any:
    """The module *name* of a plugin's tests, which has a plain form."""
    file = FOLDER.parent / "plugins" / plugin / "tests" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"counted_{plugin}_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rome_runs_what_its_change_can_reach() -> None:
    lm = tiny_family("gpt2")
    given = {"prefixes": [[4, 6]], "steps": 10, "stop_loss": -1, "layer": 1}
    options: Any = build_options(load("rome").method, given, lm)
    templates = sample_contexts(lm, options)
    v_0 = select_keys(lm, 1, FACT, templates, options).bare_out
    rows = rows_of(lm, FACT, templates, options)
    plain = plain_of("rome", "plain").value
    ours = count(lambda: optimise_values(lm, 1, [rows], [v_0], options))
    assert count(lambda: plain(lm, 1, FACT, templates, v_0, options)) > 4.9 * ours


def test_ft_runs_the_blocks_above_its_layer_alone() -> None:
    lm = tiny_lm()
    loaded = load("ft")
    given = {"layer": 3, "steps": 10, "stop_loss": -1, "epsilon": None}
    editor = Editor(loaded, lm, build_options(loaded.method, given, lm), Prepared())
    editor.compute(FACT)
    whole = count(lambda: lm.logits(lm.batch([lm.encode(FACT.text)])))
    assert 10 * 3 * whole > 6.9 * count(lambda: editor.compute(FACT))  # forwards and backwards


def test_kn_climbs_the_blocks_once() -> None:
    lm = tiny_lm()
    ids, token = list(range(20, 36)), 7
    given = {"rule": "inclusive", "steps": 20}
    options: Any = build_options(load("kn").method, {**given, "rows": 256})
    t, w = path(options.rule, options.m)
    plain = plain_of("kn", "plain").attributions
    theirs = count(lambda: plain(lm, ids, token, t.tolist(), w, options.site))
    assert theirs > 3 * count(lambda: attributions(lm, ids, token, options))


def test_a_trace_restores_all_states_in_one_pass() -> None:
    lm, tracing = tiny_family("gpt2"), plain_of("rome", "test_tracing")
    setup = TraceSettings(noise=0.1, samples=5)

    @torch.no_grad()
    def theirs() -> None:
        plain = tracing.Plain(lm, setup)
        for token in range(plain.start, len(plain.ids)):
            for block in range(lm.n_layers):
                tracing.expected(plain, STATE, block, token)

    ours = count(lambda: trace(lm, tracing.FACT, setup, kinds=[STATE]))
    assert count(theirs) > 3.2 * ours


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize(("method", "least"), [("mend", 1.46), ("ke", 1.46)])
def test_a_step_of_training_runs_the_edited_blocks_alone(
    method: str, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hyper_training

    small = {"mend": {"rank": 4}, "ke": {"hidden": 4, "condition": 4}}
    monkeypatch.setattr(hyper_training, "OPTIONS", small)
    lm = tiny_lm(n_layer=8, n_embd=64)
    lm.model.float()
    row = hyper_training.measure(lm, method, load_cases(str(WORLD.training), 40), 1)
    assert row["times_fewer_flops"] > least


@pytest.mark.parametrize("n", [3, 12])
def test_memit_solves_for_as_many_unknowns_as_facts(n: int) -> None:
    """Its products have the keys (D, n): 4 D n^2 operations, none with D^2."""
    D = 64
    T = torch.randn(D, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert count(lambda: combination(T, n, 1.0)) == 4 * D * n**2
