"""The training of a hypernetwork editor: steps, validation, early stop, checkpoints, estimate."""

from __future__ import annotations

import math
import random
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from lmedit.charts import Lines
from lmedit.errors import NotPreparedError
from lmedit.hyper.frozen import GIGABYTE, FrozenModel, ids_of, targets_of
from lmedit.hyper.losses import Scores, all_right, edit_loss, locality_loss, share_unchanged
from lmedit.hyper.network import EditBatch, LowRankBatch, edited_rows
from lmedit.hyper.training_state import TrainingState
from lmedit.memory import is_out_of_memory
from lmedit.metrics.contamination import TRAINED_ON
from lmedit.types import Prepared

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lmedit.hyper.examples import Example, Examples, Ids, Row
    from lmedit.hyper.network import Hypernetwork
    from lmedit.hyper.options import HyperOptions
    from lmedit.models import Lm
    from lmedit.storage.tensors import Checkpoint
    from lmedit.types import Site

    Changes = Mapping[Site, LowRankBatch]

SAVE_SECONDS = 30.0
FAILURES = 10
"""After this number of steps in a row without a finite gradient the training fails."""
PRIMING = 200
"""Number of training edits that a network computes its statistics from."""

Pick = tuple["Example", "Row", "Ids"]
"""An example, one of its edited prompts, and one of its unrelated texts."""


def pick(example: Example, number: int) -> Pick:
    """One of an example's combinations; a rising *number* goes through all of them in turn."""
    turn, which = divmod(number, len(example.outer))
    unrelated = example.apart[which]
    return example, example.outer[which], unrelated[turn % len(unrelated)]


def train(
    lm: Lm,
    network: Hypernetwork,
    examples: Examples,
    options: HyperOptions,
    checkpoint: Checkpoint,
    groups: Sequence[dict[str, Any]] | None = None,
) -> Prepared:
    """Train *network* until its validation loss stops falling; continue from *checkpoint*.

    *groups* are Adam's parameter groups; by default one group of all parameters. Returns the
    weights with the lowest validation loss, and the curve of losses. Raises `NotPreparedError`
    after `FAILURES` steps in a row without a finite gradient.
    """
    trainer = _Trainer(lm, network.to(lm.device), examples, options, groups)
    run = trainer.run
    if run.load(checkpoint):
        trainer.recall()
    else:
        network.prime(trainer.frozen.factors(examples.training[:PRIMING]))
        trainer.validate()
        run.save(checkpoint)
    with tqdm(total=options.steps, initial=run.step, disable=None, desc="training") as bar:
        if not bar.disable:
            bar.write(trainer.estimate(), file=bar.fp)
        saved = time.monotonic()
        while run.step < options.steps and run.waited < options.patience:
            loss = trainer.advance()
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}{trainer.latest()}", refresh=False)
            if run.step % options.validate_every == 0 or run.step == options.steps:
                trainer.validate()
            if time.monotonic() - saved > SAVE_SECONDS:
                run.save(checkpoint)
                saved = time.monotonic()
    facts = {
        "steps": run.step,
        "examples": len(examples.training),
        "curve": run.curve,
        "validation_examples": len(examples.validation),
        "steps_skipped": run.skipped,
        "validation": min(run.curve, key=lambda point: point["loss"]),
        "recipe": options.model_dump(mode="json"),
    }
    known = torch.tensor(examples.fingerprints, dtype=torch.long)
    return Prepared({**run.best, TRAINED_ON: known}, facts)


def curves(curve: Sequence[Mapping[str, float]]) -> tuple[Lines, Lines]:
    """Two charts of a training's validations: the losses, and the shares in percent."""
    steps = tuple(point["step"] for point in curve)

    def line(name: str, scale: float = 1.0) -> tuple[float, ...]:
        return tuple(scale * point[name] for point in curve)

    losses = {"edit, NLL": line("edit"), "other texts, KL": line("apart"), "total": line("loss")}
    shares = {"success": line("success", 100), "kept": line("kept", 100)}
    return (
        Lines("Losses on held-out examples", "step", "nats", steps, losses),
        Lines("Edits that succeed, tokens that stay", "step", "%", steps, shares),
    )


class _Trainer:
    def __init__(
        self,
        lm: Lm,
        network: Hypernetwork,
        examples: Examples,
        options: HyperOptions,
        groups: Sequence[dict[str, Any]] | None,
    ) -> None:
        self.lm, self.network, self.examples, self.options = lm, network, examples, options
        first = options.blocks[0]
        self.frozen = FrozenModel(
            lm, options.sites(lm), first, options.cache_gigabytes, answers=network.answers
        )
        optimiser = torch.optim.Adam(
            [dict(group) for group in groups or [{"params": list(network.parameters())}]],
            lr=options.learning_rate,
        )
        self.rates = [group["lr"] for group in optimiser.param_groups]
        self.run = TrainingState(network, optimiser)
        self.at_once = options.at_once or options.batch

    def recall(self) -> None:
        """Register the requests of the interrupted training, in the same order."""
        asked = [self._picks(step) for step in range(self.run.step)]
        self.frozen.expect((), (), self.examples.training[:PRIMING])
        for picks in [*self._validation(), *asked]:
            self.frozen.expect(
                [ids_of(row) for _, row, _ in picks],
                [ids for *_, ids in picks],
                [example for example, *_ in picks],
            )

    def _validation(self) -> list[list[Pick]]:
        """The held-out examples in batches, one combination of each."""
        picks = [pick(example, i) for i, example in enumerate(self.examples.validation)]
        size = self.options.batch
        return [picks[start : start + size] for start in range(0, len(picks), size)]

    def estimate(self) -> str:
        """One line about size, memory and time; it times one step."""
        count = sum(p.numel() for p in self.network.parameters())
        needed = 16 * count / GIGABYTE + self.options.cache_gigabytes
        picks = self._picks(self.run.step)
        for _ in range(2):  # the first fills the memory
            started = time.monotonic()
            self._gradient(picks)
            seconds = time.monotonic() - started
        left = self.options.steps - self.run.step
        return (
            f"{count / 1e6:.2f} M parameters, {len(self.examples.training)} examples, "
            f"up to {needed:.1f} GB besides the model; at most {left} steps, "
            f"about {left * seconds / 60:.0f} min"
        )

    def latest(self) -> str:
        """The scores of the last validation, as text."""
        if not self.run.curve:
            return ""
        point = self.run.curve[-1]
        return (
            f", validation {point['loss']:.3f}, success {100 * point['success']:.0f} %, "
            f"kept {100 * point['kept']:.0f} %"
        )

    def advance(self) -> float:
        """Do one step and return the loss. A gradient that is not finite changes no weight."""
        run, options = self.run, self.options
        loss = self._gradient(self._picks(run.step))
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), options.clip)
        finite = math.isfinite(loss) and bool(norm.isfinite())
        if finite:
            for group, rate in zip(run.optimiser.param_groups, self.rates, strict=True):
                group["lr"] = rate * self._pace(run.step)
            run.optimiser.step()
        run.step += 1
        run.skipped += not finite
        self.failed = 0 if finite else self.failed + 1
        if self.failed >= FAILURES:
            raise NotPreparedError(
                f"the training's gradient was not finite for {FAILURES} steps in a row; "
                "lower learning_rate"
            )
        return loss

    def _gradient(self, picks: Sequence[Pick]) -> float:
        """The loss of a step's edits; the network receives its gradient.

        If memory is full, the edits run in smaller parts. The parts' gradients add up to that of
        the whole step.
        """
        while True:
            self.run.optimiser.zero_grad()
            try:
                parts = [picks[i : i + self.at_once] for i in range(0, len(picks), self.at_once)]
                if self.network.joint:
                    return self._joint_backward(picks, parts)
                return sum(self._backward(part, len(part) / len(picks)) for part in parts)
            except (RuntimeError, MemoryError) as error:
                if self.at_once == 1 or not is_out_of_memory(error):
                    raise
                self.at_once = (self.at_once + 1) // 2

    failed = 0

    def _loss(self, picks: Sequence[Pick]) -> Tensor:
        """The training loss, the mean over the edits."""
        return self._loss_of(self._scores(picks))

    def _loss_of(self, scores: Sequence[Tensor]) -> Tensor:
        edit, apart, *_ = scores
        return (self.options.weight_edit * edit + self.options.weight_apart * apart).mean()

    def _backward(self, picks: Sequence[Pick], share: float = 1.0) -> float:
        """Add a share of the gradient of these edits' loss; return that share of the loss.

        Only the network's parameters receive gradients, also if the model's ask for some.
        """
        loss = share * self._loss(picks)
        torch.autograd.backward(loss, inputs=list(self.network.parameters()))
        return float(loss.detach())

    def _joint_backward(self, picks: Sequence[Pick], parts: Sequence[Sequence[Pick]]) -> float:
        """The same for a joint network: one change of all *picks*, scored in *parts*.

        The gradient at the change is collected part by part. Then one pass carries it through the
        network (Tan et al. 2024, section 3.3), so memory depends on the largest part.
        """
        changes = self._changes(picks)
        leaves = {
            site: LowRankBatch(*(t.detach().requires_grad_() for t in (each.left, each.right)))
            for site, each in changes.items()
        }
        total = 0.0
        for part in parts:
            loss = len(part) / len(picks) * self._loss_of(self._scores_under(leaves, part))
            torch.autograd.backward(
                loss, inputs=[t for leaf in leaves.values() for t in (leaf.left, leaf.right)]
            )
            total += float(loss.detach())
        pairs = [
            (out, leaf.grad)
            for site, each in changes.items()
            for out, leaf in zip(
                (each.left, each.right), (leaves[site].left, leaves[site].right), strict=True
            )
            if out.requires_grad
        ]
        outs, gradients = zip(*pairs, strict=True)
        torch.autograd.backward(outs, gradients, inputs=list(self.network.parameters()))
        return total

    def _pace(self, step: int) -> float:
        """The factor of the learning rate at *step*."""
        options = self.options
        if step < options.warmup:
            return (step + 1) / options.warmup
        return 1 - step / options.steps if options.decay else 1.0

    def _picks(self, step: int) -> list[Pick]:
        """The examples of a step, in a new random order in each pass; a restart repeats them."""
        training, batch = (
            self.examples.training,
            min(self.options.batch, len(self.examples.training)),
        )
        per_pass = len(training) // batch
        turn, place = divmod(step, per_pass)
        draw = random.Random(f"{self.options.seed}:{turn}")  # noqa: S311  (no secret)
        order = draw.sample(range(len(training)), len(training))
        chosen = [training[i] for i in order[place * batch : (place + 1) * batch]]
        draw = random.Random(f"{self.options.seed}:step:{step}")  # noqa: S311
        return [pick(example, draw.randrange(1 << 30)) for example in chosen]

    def _changes(self, picks: Sequence[Pick]) -> Changes:
        """What the network changes for these edits."""
        return self.network(self._edits([example for example, _, _ in picks]))

    def _scores(self, picks: Sequence[Pick]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For each edit (B,): its loss, the KL on another text, success, and the share kept."""
        return self._scores_under(None, picks)

    def _scores_under(
        self, changes: Changes | None, picks: Sequence[Pick]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same on the model with *changes*; None: those of the network for these edits."""
        B, device = len(picks), self.lm.device
        outer, apart = [row for _, row, _ in picks], [ids for _, _, ids in picks]
        rows = [*map(ids_of, outer), *apart]
        at = targets_of(outer, device)
        other = torch.tensor(
            [(i, t) for i, ids in enumerate(apart) for t in range(len(ids))], device=device
        )
        log_p_0 = self.frozen.logits(rows[B:], (other[:, 0], other[:, 1])).float().log_softmax(-1)
        changes = self._changes(picks) if changes is None else changes
        kept = self.frozen.from_first(rows)
        edit_of = torch.arange(B, device=device).repeat(2)
        edit_of = torch.zeros_like(edit_of) if self.network.joint else edit_of
        with edited_rows(self.lm, changes, edit_of):
            where = torch.cat([at.rows, B + other[:, 0]]), torch.cat([at.positions, other[:, 1]])
            log_p = kept.logits_at(*where).float().log_softmax(-1)
        there, elsewhere = log_p[: len(at.rows)], log_p[len(at.rows) :]
        return (
            edit_loss(there, at.tokens, at.edit_of, B),
            locality_loss(elsewhere, log_p_0, other[:, 0], B),
            all_right(there.detach(), at.tokens, at.edit_of, B),
            share_unchanged(elsewhere.detach(), log_p_0, other[:, 0], B),
        )

    def _edits(self, examples: Sequence[Example]) -> EditBatch:
        """The network's input for some edits."""
        batch = self.lm.batch([[*e.inner[0], *e.inner[1]] for e in examples])
        return EditBatch(self.frozen.factors(examples), batch.ids, batch.lengths)

    @torch.no_grad()
    def validate(self) -> None:
        """Score the held-out examples; keep the weights if their loss is the lowest so far."""
        run = self.run
        found = [torch.stack(self._scores(picks)) for picks in self._validation()]
        scores = Scores(*torch.cat(found, dim=1).double().mean(1).tolist())
        loss = scores.total(self.options.weight_edit, self.options.weight_apart)
        run.curve.append({"step": run.step, "loss": loss, **asdict(scores)})
        run.waited += 1
        if loss < run.best_loss:
            run.best_loss, run.waited = loss, 0
            run.best = {name: t.detach().clone() for name, t in self.network.state_dict().items()}
