"""Abilities of a model, measured by EleutherAI's lm-evaluation-harness (the package lm-eval).

The harness wraps the model in memory (`HFLM`), so no folder is written. It asks each task as the
task defines it. An edit is added to the outputs beside the weights, or it is in the weights now.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from importlib.metadata import version
from math import isfinite
from typing import TYPE_CHECKING, Any, Self

from lmedit.errors import RequestError
from lmedit.metrics.ability_tasks import aside, load_tasks
from lmedit.models.refusals import first_line
from lmedit.storage.cache import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from lmedit.metrics.ability_tasks import Wanted
    from lmedit.models import Lm
    from lmedit.replay.unmerged import RowEdits

    Values = dict[str, dict[str, list[Any]]]
    """By task and metric: the value of each document, in the order of the documents."""

ROWS = 8
"""How many texts the harness reads in one pass."""


class AbilityTasks:
    """Tasks of the harness, and a model that they can be asked of."""

    def __init__(self, lm: Lm, wanted: Wanted, *, quiet: bool = True) -> None:
        """Load the tasks. Without *quiet*, the harness's bars are shown on a terminal.

        Raises the errors of `load_tasks`.
        """
        self.lm, self.wanted, self.quiet = lm, wanted, quiet
        self.tasks, self.parts = load_tasks(wanted)
        self.read: dict[str, Any] = {}
        """What the harness told of the tasks when it asked them last: JSON values."""
        self._harness: tuple[Any, Any] | None = None

    def measure(self, under: RowEdits | None = None) -> Values:
        """The values of the model as it is now, or with the first edit of *under*.

        Raises `RequestError` if the harness fails.
        """
        with aside(quiet=self.quiet):
            from lm_eval.evaluator import evaluate

            harness = self._wrap_model()
            try:
                with _beside(harness, under):
                    found = evaluate(
                        lm=harness,
                        task_dict={"tasks": self.tasks, "groups": {}},
                        limit=self.wanted.limit,
                        bootstrap_iters=0,
                    )
            except Exception as error:
                raise RequestError(f"the harness fails: {first_line(error)}") from error
        self.read = {
            **{name: dict(found[name]) for name in ("versions", "n-shot", "higher_is_better")},
            "documents": {
                name: [[each["doc_hash"], each["prompt_hash"]] for each in samples]
                for name, samples in found["samples"].items()
            },
        }
        return {name: _by_metric(found["samples"][name]) for name in self.tasks}

    def _wrap_model(self) -> Any:
        """The harness around the present model. It has a tokenizer of its own, which it changes."""
        from lm_eval.models.huggingface import HFLM

        if self._harness is None or self._harness[0] is not self.lm.model:
            tokenizer = copy.deepcopy(self.lm.tokenizer)
            wrapped = HFLM(pretrained=self.lm.model, tokenizer=tokenizer, batch_size=ROWS)
            self._harness = (self.lm.model, wrapped)
        return self._harness[1]


class Abilities(AbilityTasks):
    """Tasks, and the unedited model's value of each of their documents."""

    def __init__(self, lm: Lm, wanted: Wanted, *, quiet: bool = True) -> None:
        """Load the tasks, and measure *lm*, which must be the base model now.

        Without *quiet*, the harness's bars are shown on a terminal. Raises the errors of
        `load_tasks` and `measure`.
        """
        super().__init__(lm, wanted, quiet=quiet)
        self.base = self.measure()

    @classmethod
    def from_values(cls, tasks: AbilityTasks, base: Values, read: dict[str, Any]) -> Self:
        """Those of *tasks* with values that another process measured, and its `read`."""
        made = cls.__new__(cls)
        vars(made).update(vars(tasks))
        made.base, made.read = base, read
        return made

    @property
    def digest(self) -> str:
        """A digest of the tasks, their documents and the harness: for keys of results."""
        documents = self.read["documents"]
        return key_of(harness=version("lm-eval"), parts=self.parts, documents=documents)

    @property
    def about(self) -> dict[str, Any]:
        """The protocol of these values, as JSON values."""
        return {
            "harness": f"lm-eval {version('lm-eval')}",
            "limit": self.wanted.limit,
            "tasks": {
                name: {
                    "version": self.read["versions"].get(name),
                    "shots": self.read["n-shot"].get(name, 0),
                    "documents": len(next(iter(self.base[name].values()), [])),
                    "higher_is_better": self.read["higher_is_better"].get(name, {}),
                }
                for name in self.tasks
            },
            "documents": self.digest,
        }

    def metrics_of(self, name: str) -> list[str]:
        """The metrics of a wanted name; of a group, those that are a mean in all its tasks."""
        tasks = self.parts[name]
        every = self.base[tasks[0]]
        return [m for m in every if len(tasks) == 1 or all(self.is_mean(t, m) for t in tasks)]

    def join_documents(self, name: str, metric: str, values: Values) -> list[Any]:
        """The values of all documents of a wanted name."""
        return [value for task in self.parts[name] for value in values[task][metric]]

    def first_differences(self, edited: Values) -> dict[str, float | None]:
        """The difference of each name's first metric, and of each metric as ``name:metric``."""
        found: dict[str, float | None] = {}
        for name in self.parts:
            for metric in self.metrics_of(name):
                sum_up = self.way_of(name, metric)
                after, before = (self.join_documents(name, metric, v) for v in (edited, self.base))
                moved = float(sum_up(after)) - float(sum_up(before))
                found[f"{name}:{metric}"] = moved if isfinite(moved) else None
                found.setdefault(name, found[f"{name}:{metric}"])
        return found

    def way_of(self, name: str, metric: str) -> Callable[[Sequence[Any]], float]:
        """The way of a wanted name from the values of its documents to its score."""
        return self._sum_up(self.parts[name][0], metric)

    def _sum_up(self, task: str, metric: str) -> Callable[[Sequence[Any]], float]:
        found: Any = self.tasks[task].aggregation().get(metric.partition(" (")[0], _mean)
        return found

    def is_mean(self, task: str, metric: str) -> bool:
        """Whether the score of *task* is the mean of numbers."""
        from lm_eval.api.metrics import mean

        values = self.base[task].get(metric)
        numbers = values is not None and all(isinstance(v, int | float) for v in values)
        return numbers and self._sum_up(task, metric) in (mean, _mean)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _by_metric(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The values of *samples* by metric. A filter's name follows its metric in brackets."""
    found: dict[str, list[Any]] = {}
    for sample in sorted(samples, key=lambda each: each["doc_id"]):
        for metric in sample["metrics"]:
            name = metric if sample["filter"] == "none" else f"{metric} ({sample['filter']})"
            found.setdefault(name, []).append(_plain(sample[metric]))
    return found


def _plain(value: Any) -> Any:
    """*value* as a JSON value: numbers of numpy become Python's, tuples become lists."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value


@contextmanager
def _beside(harness: Any, under: RowEdits | None) -> Iterator[None]:
    """In the block, every pass of *harness* runs with the first edit of *under*."""
    if under is None:
        yield
        return
    edits, number = under.edits, under.of[0]
    names = {"_model_call": "inps", "_model_generate": "context"}

    def with_edit(call: Callable[..., Any], first: str) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            rows = given[0] if given else named[first]
            with edits.on([number] * len(rows)):
                return call(*given, **named)

        return run

    for name, first in names.items():
        setattr(harness, name, with_edit(getattr(harness, name), first))
    try:
        yield
    finally:
        for name in names:
            delattr(harness, name)
