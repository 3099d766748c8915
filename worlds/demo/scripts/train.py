"""Train the demo's tokenizer and model, and write them as a hub folder.

A run goes on from its last checkpoint in the work folder; without one it starts from nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional

from network import (
    Edits,
    Network,
    Precision,
    Shape,
    Writes,
    causal_masks,
    overlap,
    recall_masks,
)
from sentences import END, Mix, TextSampler
from windows import Batch, Windows
from world import PACKAGE_DIR, World, load_world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLAMP = 4.0
"""ROME lets an edit write at most so many times what the layer writes there by itself."""

LONG_SHARE = 0.08
"""Share of the batches with windows of 127 tokens instead of 64."""

UNIT = 4.0
UNIT_HELP = "factor on the residual stream, which makes the fixed steps of edits smaller beside it"


@dataclass(frozen=True)
class Plan:
    """Length and pace of a training run: a phase of learning, then one of settling.

    The second phase moves the recall to one layer and keeps facts apart under edits. Shares are of
    the steps of a phase; `masked` has one entry per third of the first phase and one for the
    second. `edited` is the share of the second phase's windows with an imitated edit, `length` that
    of the vector it writes, `searched` how often that vector is found by gradient, and `apart` the
    weight of what keeps edits apart. In the other windows `idle` is how often the MLPs of layers
    before (and of those after) the recall layer write nothing at a subject. C is inverted anew
    every `inverted` steps.
    """

    seed: int = 0
    steps: int = 6400
    settle: int = 2800
    windows: int = 12
    rate: float = 1.5e-3
    warmup: int = 200
    hold: float = 0.55
    stages: int = 5
    staged: float = 0.33
    masked: tuple[float, ...] = (0.9, 0.6, 0.3, 0.6)
    idle: tuple[float, float] = (0.7, 0.3)
    length: float = 28.0
    edited: float = 0.6
    searched: float = 0.5
    apart: float = 0.5
    inverted: int = 20
    save_every: int = 400


SEARCH = 2
"""Steps of the search for what an edit is to write; ROME takes 25, of Adam."""


def train_tokenizer(lines: list[str], size: int) -> Tokenizer:
    """Byte-level BPE like GPT-2's, with end-of-text as its only special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def fraction_at(step: int, plan: Plan) -> float:
    """Share of the subjects in play at a step: growing stages over the first part of the run."""
    stage = 1 + int(step / max(1.0, plan.staged * plan.steps) * (plan.stages - 1))
    return min(1.0, math.pow(stage / plan.stages, 1.5))


def rate_at(step: int, plan: Plan) -> float:
    """Learning rate: in each phase a short warm-up, constant, then falling in a line to zero."""
    length = plan.steps
    if step >= plan.steps:
        step, length = step - plan.steps, plan.settle
    if step < plan.warmup:
        return plan.rate * (step + 1) / plan.warmup
    left = (length - step) / max(1.0, (1 - plan.hold) * length)
    return plan.rate * min(1.0, left)


def gates_of(batch: Batch, shape: Shape, plan: Plan) -> Tensor:
    """Factors (early layers, batch, time, 1) that silence MLPs at the subjects of some windows."""
    count = batch.ids.shape[0]
    plain = batch.edit == 0
    before = plain & (torch.rand(count) < plan.idle[0])
    after = plain & (torch.rand(count) < plan.idle[1])
    gates = torch.ones(shape.middle, *batch.ids.shape, 1)
    for layer in range(shape.middle):
        if layer != shape.recall:
            silent = before if layer < shape.recall else after
            gates[layer, (batch.subject > 0) & silent[:, None]] = 0.0
    return gates


def loss_of(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean next-token loss in nats, weighted by the (batch, time) weights of the tokens."""
    losses = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    )
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def optimizer_of(*modules: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    parameters = [p for module in modules for p in module.parameters()]
    decayed = [p for p in parameters if p.dim() > 1]
    free = [p for p in parameters if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.3}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)


@dataclass
class Run:
    """A training run in progress."""

    plan: Plan
    network: Network
    writes: Writes
    precision: Precision
    windows: Windows
    forward: Callable[..., Tensor]
    keys: Callable[..., Tensor]
    optimizer: torch.optim.AdamW
    step: int = 0

    @property
    def settling(self) -> bool:
        """Whether the run is in its second phase."""
        return self.step >= self.plan.steps

    def save(self, path: Path) -> None:
        """Write a checkpoint; a kill while writing leaves the previous one whole."""
        data = {
            "step": self.step,
            "network": self.network.state_dict(),
            "writes": self.writes.state_dict(),
            "precision": self.precision.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.windows.sampler.state(),
        }
        torch.save(data, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Take up a checkpoint written by `save`."""
        data: dict[str, Any] = torch.load(path, weights_only=True)
        self.step = data["step"]
        self.network.load_state_dict(data["network"])
        if self.step > self.plan.steps:
            self.settle()
            self.writes.load_state_dict(data["writes"])
            self.precision.load_state_dict(data["precision"])
        if self.step != self.plan.steps:
            self.optimizer.load_state_dict(data["optimizer"])
        self.windows.sampler.restore(**data["sampler"])

    def settle(self) -> None:
        """Begin the second phase with a fresh optimizer."""
        self.optimizer = optimizer_of(self.network, self.writes)

    def loss(self, batch: Batch, rng: random.Random) -> Tensor:
        """The loss of a batch under this step's masks and, when settling, edits and silences."""
        plan = self.plan
        masked = plan.masked[-1 if self.settling else self.step * 3 // plan.steps]
        masks = causal_masks(*batch.ids.shape)
        if rng.random() < masked:
            masks = recall_masks(batch.subject, batch.last > 0, alone=self.settling)
        if not self.settling:
            return loss_of(self.forward(batch.ids, masks), batch.ids, batch.weights)
        keys = self.keys(batch.ids, causal_masks(*batch.ids.shape))
        self.precision.see(keys[batch.weights > 0])
        if self.step % plan.inverted == 0:
            self.precision.invert()
        bare = self.keys(batch.bare, causal_masks(*batch.bare.shape))
        bare = bare[torch.arange(len(bare)), batch.bare_last]
        inverse = self.precision.inverse
        edits = Edits(inverse, bare, batch.own, self.writes(batch.edit))
        gates = gates_of(batch, self.network.shape, plan)
        if rng.random() < plan.searched:
            edits = replace(edits, writes=self.search(batch, masks, gates, edits))
        loss = loss_of(self.forward(batch.ids, masks, gates, edits), batch.ids, batch.weights)
        ends = batch.last > 0
        names = torch.cat([batch.last[ends], batch.last.gather(1, batch.own[:, None])[:, 0]])
        reach = overlap(torch.cat([keys[ends], bare]), names, inverse)
        recalled = self.network.recall(bare).float().norm(dim=-1)
        return loss + plan.apart * (reach + ((CLAMP * recalled / plan.length - 1) ** 2).mean())

    def search(self, batch: Batch, masks: Tensor, gates: Tensor, edits: Edits) -> Tensor:
        """What ROME would have the edits write (batch, width): ascent by signs, as Adam begins."""
        self.network.requires_grad_(False)
        edits = replace(edits, bare=edits.bare.detach())
        way = torch.zeros_like(edits.writes)
        writes = way
        for _ in range(SEARCH):
            writes = writes.requires_grad_()
            logits = self.forward(batch.ids, masks, gates, replace(edits, writes=writes))
            loss = loss_of(logits, batch.ids, batch.asked)
            way = way - torch.autograd.grad(loss, writes)[0].sign()
            writes = functional.normalize(way, dim=-1) * self.plan.length
        self.network.requires_grad_(True)
        return writes * (batch.edit > 0)[:, None]

    def advance(self) -> float:
        """Take one optimisation step and return its loss in nats."""
        if self.step == self.plan.steps:
            self.settle()
        rng = random.Random(f"step:{self.plan.seed}:{self.step}")
        self.windows.sampler.set_fraction(fraction_at(self.step, self.plan))
        long = rng.random() < LONG_SHARE
        count = self.plan.windows // (2 if long else 1)
        edited = round(self.plan.edited * count) if self.settling else 0
        batch = self.windows.batch(count, 127 if long else 64, edited)
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.plan)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = self.loss(batch, rng)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())


def train(run: Run, checkpoint: Path) -> Iterator[str]:
    """Train to the end, yielding progress lines."""
    start, first = time.monotonic(), run.step
    mean = math.nan
    end = run.plan.steps + run.plan.settle
    while run.step < end:
        loss = run.advance()
        mean = loss if math.isnan(mean) else 0.98 * mean + 0.02 * loss
        if run.step % 50 == 0:
            pace = (time.monotonic() - start) / (run.step - first)
            yield f"step {run.step} loss {mean:.3f} {pace:.3f} s/step"
        if run.step % run.plan.save_every == 0 or run.step == end:
            run.save(checkpoint)


def rescale(state: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Multiply the residual stream by a factor without changing what the network computes.

    Layer norms do not see the factor, and the last one takes it back for the tied embeddings.
    """
    grown = (".wte.weight", ".wpe.weight", ".c_proj.weight", ".c_proj.bias")
    last = ("transformer.ln_f.weight", "transformer.ln_f.bias")
    result = {}
    for name, value in state.items():
        power = 1 if name.endswith(grown) else -1 if name in last else 0
        result[name] = value * factor**power
    return result


def write_model(network: Network, tokenizer: Tokenizer, folder: Path, unit: float) -> None:
    """Write a hub folder: weights in float16, loaded as float32; `unit` as in `rescale`."""
    shape = network.shape
    folder.mkdir(parents=True, exist_ok=True)
    state = rescale(network.gpt2_state(), unit)
    weights = {name: value.half() for name, value in state.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    end = tokenizer.token_to_id(END)
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": shape.vocabulary,
        "n_positions": shape.positions,
        "n_embd": shape.width,
        "n_head": shape.heads,
        "n_layer": shape.layers,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": end,
        "eos_token_id": end,
        "tie_word_embeddings": True,
        "layer_norm_epsilon": 1e-5 * unit**2,
        "dtype": "float32",
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": end, "eos_token_id": end})
    tokenizer.save(str(folder / "tokenizer.json"))
    specials = {"bos_token": END, "eos_token": END, "unk_token": END}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": shape.positions}
    write_json(folder / "tokenizer_config.json", {**settings, **specials})


def write_json(path: Path, data: object) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    plan, shape = Plan(), Shape()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo-work"), help="checkpoint folder")
    parser.add_argument("--out", type=Path, default=PACKAGE_DIR / "model")
    parser.add_argument("--steps", type=int, default=plan.steps)
    parser.add_argument("--settle", type=int, default=plan.settle, help="steps of phase two")
    parser.add_argument("--rate", type=float, default=plan.rate)
    parser.add_argument("--windows", type=int, default=plan.windows)
    parser.add_argument("--width", type=int, default=shape.width)
    parser.add_argument("--layers", type=int, default=shape.layers)
    parser.add_argument("--noise", type=float, default=Mix().noise)
    parser.add_argument("--unit", type=float, default=UNIT, help=UNIT_HELP)
    parser.add_argument("--seed", type=int, default=plan.seed)
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the subjects, for trials"
    )
    return parser.parse_args(arguments)


def sampled_world(share: float, seed: int) -> World:
    """The world, or for trials only a random share (0 to 1) of its subjects."""
    world = load_world()
    keep = set(world.subjects)
    if share < 1:
        keep = set(random.Random(seed).sample(world.subjects, round(share * len(keep))))
    return replace(
        world,
        subjects=tuple(s for s in world.subjects if s in keep),
        facts=tuple(f for f in world.facts if f.subject in keep),
    )


def prepare_tokenizer(world: World, seed: int, size: int, path: Path) -> Tokenizer:
    """Load the run's tokenizer, or train it on text of the training distribution."""
    if not path.exists():
        lines = TextSampler(world, seed + 1, Mix(noise=0.0), phrasings=seed).lines(20000)
        tokenizer = train_tokenizer(lines, size)
        tokenizer.save(str(path))
    return Tokenizer.from_file(str(path))


def start_run(options: argparse.Namespace) -> Run:
    """Set up a run from the command line, from its last checkpoint if there is one."""
    torch.manual_seed(options.seed)
    plan = Plan(
        seed=options.seed,
        steps=options.steps,
        settle=options.settle,
        rate=options.rate,
        windows=options.windows,
    )
    world = sampled_world(options.share, options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    shape = Shape(width=options.width, layers=options.layers, middle=options.layers // 2)
    tokenizer = prepare_tokenizer(
        world, options.seed, shape.vocabulary, options.work / "tokenizer.json"
    )
    network = Network(replace(shape, vocabulary=tokenizer.get_vocab_size()))
    sampler = TextSampler(world, options.seed, Mix(noise=options.noise))
    windows = Windows(sampler, tokenizer)
    writes = Writes(len(windows.edits), shape.width, plan.length)
    precision = Precision(4 * shape.width)
    forward: Callable[..., Tensor] = torch.compile(network, dynamic=False)
    keys: Callable[..., Tensor] = torch.compile(network.keys, dynamic=False)
    optimizer = optimizer_of(network)
    run = Run(plan, network, writes, precision, windows, forward, keys, optimizer)
    checkpoint = options.work / "checkpoint.pt"
    if checkpoint.exists():
        run.load(checkpoint)
    return run


def main() -> None:
    """Train from the command line."""
    options = parse()
    run = start_run(options)
    size = sum(p.numel() for p in run.network.parameters())
    facts = len(run.windows.sampler.world.facts)
    print(f"{size} parameters, {facts} facts, from step {run.step}", file=sys.stderr)
    for line in train(run, options.work / "checkpoint.pt"):
        print(line, file=sys.stderr, flush=True)
    write_model(run.network, run.windows.tokenizer, options.out, options.unit)
    print(f"wrote {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
