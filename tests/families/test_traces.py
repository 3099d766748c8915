"""Causal traces of families that need whole passes, or whose blocks differ, by plain hooks."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner
from trials import REQUEST, build, loaded

from lmedit.actions.subjects import proposals
from lmedit.cli import main
from lmedit.tiny import byte_tokenizer
from lmedit.trace import captured, changed
from lmedit_rome.restoring import MLP, STATE, TraceSettings, modules_of
from lmedit_rome.tracing import trace

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from lmedit import Lm

SETUP = TraceSettings(noise=1.0, samples=2, window=2, seed=4)
WIDTH = 16


def _tokens(out: Tensor, rows: int, length: int) -> Tensor:
    """A view (rows, T, ...) of an output (rows, T, H), (rows * T, H) or (streams, rows, T, H)."""
    if out.dim() == 2:
        return out.reshape(rows, length, -1)
    return out.movedim(0, 2) if out.dim() == 4 and out.shape[1:3] == (rows, length) else out


def _run(lm: Lm, ids: list[int], noise: Tensor, hooks: list[tuple[nn.Module, Any]]) -> Tensor:
    """P of the next token (3, V): a clean row and two with *noise* at the subject."""
    start, end = lm.subject_span(REQUEST.prompt, REQUEST.subject)[1:]

    def add(_: Tensor, out: Tensor) -> Tensor:
        noisy = out.clone()
        noisy[1:, start:end] += noise
        return noisy

    with ExitStack() as stack:
        stack.enter_context(changed(lm.model.get_input_embeddings(), add))
        for module, change in hooks:
            stack.enter_context(changed(module, change))
        logits = lm.model(input_ids=torch.tensor([ids] * 3), use_cache=False).logits
    return logits[:, -1].float().softmax(-1)


def test_locate_and_an_automatic_subject_work_without_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state-space model is traced, and its subject is proposed, on the command line."""
    monkeypatch.setenv("LMEDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    build("mamba").save_pretrained(tmp_path / "mamba")
    byte_tokenizer().save_pretrained(tmp_path / "mamba")
    fact = ("-m", "mamba", "--prompt", "The old tower is in the city of", "--target", "river")
    probe = ("locate", "rome", *fact, "--subject", "The old tower", "--probe", "--json")
    done = CliRunner().invoke(main, [*probe, "-o", "trace_samples", "2"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)["probe"]
    assert values["total effect"] == pytest.approx(values["p(clean)"] - values["p(disturbed)"])
    assert "state: largest effect" in values
    assert "mlp: largest effect" in values
    assert "attention: largest effect" not in values  # a block of Mamba has no second part
    quick = ("-o", "steps", "2", "--force", "--json")
    done = CliRunner().invoke(main, ["edit", "ft", *fact, "--subject", "auto", *quick])
    assert done.exit_code == 0, done.output
    assert "is taken; noise on it lowers the answer's probability" in done.stderr


@pytest.mark.filterwarnings("ignore")  # of the models' own code
@pytest.mark.parametrize(
    "kind", ["mamba", "lfm2", "qwen3_5_text", "gemma3n_text", "mllama", "mixtral", "deepseek_v4"]
)
@torch.no_grad()
def test_a_trace_equals_plain_hooks(kind: str, tmp_path: Path) -> None:
    build(kind).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    lm = loaded(str(tmp_path))
    found = trace(lm, REQUEST, SETUP)
    ids, start, end = lm.subject_span(REQUEST.prompt, REQUEST.subject)
    draw = torch.Generator().manual_seed(SETUP.seed)
    noise = SETUP.noise * torch.randn(2, end - start, lm.hidden_size, generator=draw)
    token = end - 1
    running = [layer for layer in range(lm.n_layers) if lm.runs(layer)]
    mlps = modules_of(lm, MLP)
    each: dict[tuple[str, int], nn.Module] = {(STATE, i): lm.block(i) for i in running}
    each |= {(MLP, i): mlp for i, mlp in enumerate(mlps) if mlp is not None}
    with ExitStack() as stack:
        boxes = {key: stack.enter_context(captured(module)) for key, module in each.items()}
        p = _run(lm, ids, noise, [])
    answer = int(p[0].argmax())
    assert found.clean == pytest.approx(float(p[0, answer]), abs=1e-6)
    assert found.disturbed == pytest.approx(float(p[1:, answer].mean()), abs=1e-6)
    outputs = {key: _tokens(box.output, 3, len(ids)).clone() for key, box in boxes.items()}

    def putting(key: tuple[str, int]) -> tuple[nn.Module, Any]:
        def change(_: Tensor, out: Tensor) -> Tensor:
            new = out.clone()
            _tokens(new, 3, len(ids))[1:, token] = outputs[key][:1, token]
            return new

        return each[key], change

    for layer in running:
        p = _run(lm, ids, noise, [putting((STATE, layer))])
        assert found.scores[STATE][token, layer].item() == pytest.approx(
            float(p[1:, answer].mean()), abs=1e-5
        )
        window = [i for i in (layer - 1, layer) if (MLP, i) in each]
        p = _run(lm, ids, noise, [putting((MLP, i)) for i in window])
        assert found.scores[MLP][token, layer].item() == pytest.approx(
            float(p[1:, answer].mean()), abs=1e-5
        )
    assert found.indirect(STATE)[token].abs().max() > 0
    assert proposals(lm, REQUEST.text)
