"""Training steps of MEND and KE: ours against a straightforward functional model.

    python benchmarks/hyper_training.py

The plain form edits copies of whole matrices with `torch.func.functional_call`, one edit after the
other, and runs the whole model for each text. Both make one step of ten edits; the losses must be
equal. Prints a row for each method and shape, and writes `benchmarks/results/hyper_training.json`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch
from paired import SMALL, compare, report, seconds, with_words
from torch.func import functional_call

from lmedit import Editor, Prepared, Request, build_options, load, load_lm
from lmedit.cases import load_cases
from lmedit.hyper import EditBatch, examples_from
from lmedit.hyper.training import PRIMING, _Trainer
from lmedit_ke import network_of as ke_network
from lmedit_mend import network_of as mend_network

if TYPE_CHECKING:
    from lmedit import Lm
    from lmedit.hyper import Example, Hypernetwork

NETWORKS = {"mend": mend_network, "ke": ke_network}
OPTIONS: dict[str, dict[str, Any]] = {
    "mend": {"rank": 128},
    "ke": {"hidden": 128, "condition": 256},
}


def plain_loss(
    lm: Lm, network: Hypernetwork, sites: tuple[Any, ...], picks: list[Any], weights: Any
) -> torch.Tensor:
    """The loss of a step, each edit by itself, every text through the whole model."""
    total = torch.zeros(())
    for example, outer, apart in picks:
        factors = plain_factors(lm, sites, example)
        ids = torch.tensor([[*example.inner[0], *example.inner[1]]])
        changes = network(EditBatch(factors, ids, torch.tensor([ids.shape[1]])))
        edited = {}
        for site, change in changes.items():
            W = lm.weight(site) + change.left[0] @ change.right[0]
            edited[site.parameter] = W.T if site.transposed else W
        prompt, target = outer
        log_p = logits_of(lm, edited, [*prompt, *target[:-1]]).log_softmax(-1)
        at = torch.arange(len(prompt) - 1, len(prompt) + len(target) - 1)
        edit = -log_p[at, torch.tensor(target)].mean()
        with torch.no_grad():
            before = logits_of(lm, {}, apart).log_softmax(-1)
        after = logits_of(lm, edited, apart).log_softmax(-1)
        kl = (before.exp() * (before - after)).sum(-1).mean()
        total = total + weights.weight_edit * edit + weights.weight_apart * kl
    return total / len(picks)


def plain_factors(lm: Lm, sites: tuple[Any, ...], example: Example) -> Any:
    """The factors of one edit, from a pass over the whole model."""
    from lmedit.hyper.factors import factors_of

    prompt, target = example.inner
    ids = [*prompt, *target[:-1]]

    def loss() -> torch.Tensor:
        log_p = logits_of(lm, {}, ids).log_softmax(-1)
        at = torch.arange(len(prompt) - 1, len(ids))
        return -log_p[at, torch.tensor(target)].mean()

    return factors_of(lm, sites, 1, loss)


def logits_of(lm: Lm, weights: dict[str, torch.Tensor], ids: Any) -> torch.Tensor:
    """Logits (T, V) with *weights* in place of the model's own."""
    inputs = {"input_ids": torch.tensor([list(ids)]), "use_cache": False}
    logits: torch.Tensor = functional_call(lm.model, weights, (), inputs).logits[0]
    return logits


def measure(lm: Lm, method: str, cases: Any, pairs: int) -> dict[str, Any]:
    """One row: a step of ten edits both ways, with the memory of the frozen blocks filled."""
    options: Any = build_options(load(method).method, {**OPTIONS[method], "limit": 200}, lm)
    network = NETWORKS[method](lm, options)
    examples = examples_from(lm, cases, options.limit, 0)
    trainer = _Trainer(lm, network, examples, options, None)
    network.prime(trainer.frozen.factors(examples.training[:PRIMING]))
    picks = trainer._picks(0)
    sites = options.sites(lm)
    parameters = [p for p in network.parameters() if p.requires_grad]

    def ours() -> float:
        loss = trainer._loss(picks)
        torch.autograd.backward(loss, inputs=parameters)
        return float(loss.detach())

    def plain() -> float:
        loss = plain_loss(lm, network, sites, picks, options)
        torch.autograd.backward(loss, inputs=parameters)
        return float(loss.detach())

    one, two = ours(), plain()
    request = Request(prompt="{} is in", subject="The tower", target_new="Rome")
    weights = {name: t.detach() for name, t in network.state_dict().items()}
    editor = Editor(load(method), lm, options, Prepared(weights))
    return {
        "method": method,
        "shape": lm.name,
        "edits": len(picks),
        **compare(plain, ours, pairs),
        "loss_difference": abs(one - two),
        "seconds_per_edit": min(seconds(lambda: editor.compute(request)) for _ in range(3)),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    flags = parser.parse_args()
    demo = load_lm("demo")
    cases = load_cases(str(demo.training), 400)
    models = (demo, with_words(SMALL))
    rows = [measure(lm, method, cases, flags.pairs) for lm in models for method in NETWORKS]
    report("hyper_training", rows)


if __name__ == "__main__":
    main()
