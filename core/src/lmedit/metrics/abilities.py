"""Abilities of a model, measured by EleutherAI's lm-evaluation-harness (the package lm-eval).

The harness wraps the model in memory (`HFLM`), so no folder is written. It asks each task as the
task defines it. An edit is added to the outputs beside the weights, or it is in the weights now.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from importlib.metadata import version
from math import isfinite
from typing import TYPE_CHECKING, Any

from lmedit.errors import RequestError
from lmedit.metrics.ability_tasks import aside, first_line, load_tasks
from lmedit.metrics.bootstrap import paired_difference, paired_statistic_difference
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


class Abilities:
    """Tasks, and the unedited model's value of each of their documents."""

    def __init__(self, lm: Lm, wanted: Wanted, *, quiet: bool = True) -> None:
        """Load the tasks, and measure *lm*, which must be the base model now.

        Without *quiet*, the harness's bars are shown on a terminal. Raises the errors of
        `load_tasks` and `measure`.
        """
        self.lm, self.wanted, self.quiet = lm, wanted, quiet
        self.tasks, self.parts = load_tasks(wanted)
        self._harness: tuple[Any, Any] | None = None
        self._read: Any = None
        self.base = self.measure()

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
        self._read = found
        return {name: _by_metric(found["samples"][name]) for name in self.tasks}

    def _wrap_model(self) -> Any:
        """The harness around the present model. It has a tokenizer of its own, which it changes."""
        from lm_eval.models.huggingface import HFLM

        if self._harness is None or self._harness[0] is not self.lm.model:
            tokenizer = copy.deepcopy(self.lm.tokenizer)
            wrapped = HFLM(pretrained=self.lm.model, tokenizer=tokenizer, batch_size=ROWS)
            self._harness = (self.lm.model, wrapped)
        return self._harness[1]

    @property
    def digest(self) -> str:
        """A digest of the tasks, their documents and the harness: for keys of results."""
        documents = {
            name: [(each["doc_hash"], each["prompt_hash"]) for each in samples]
            for name, samples in self._read["samples"].items()
        }
        return key_of(harness=version("lm-eval"), parts=self.parts, documents=documents)

    @property
    def about(self) -> dict[str, Any]:
        """The protocol of these values, as JSON values."""
        return {
            "harness": f"lm-eval {version('lm-eval')}",
            "limit": self.wanted.limit,
            "tasks": {
                name: {
                    "version": self._read["versions"].get(name),
                    "shots": self._read["n-shot"].get(name, 0),
                    "documents": len(next(iter(self.base[name].values()), [])),
                    "higher_is_better": self._read["higher_is_better"].get(name, {}),
                }
                for name in self.tasks
            },
            "documents": self.digest,
        }

    def differences(self, edited: Sequence[Values], seed: int = 0) -> dict[str, dict[str, Any]]:
        """Each wanted name and metric: the base, the mean over *edited*, and their difference.

        `low` and `high` bound the 95 % interval of a paired bootstrap over the documents. A
        document brings its values under all edits. A group has the mean over all its documents.
        """
        return {
            name: {
                metric: self._difference(tasks, metric, edited, seed)
                for metric in self.base[tasks[0]]
                if len(tasks) == 1 or all(self._is_mean(task, metric) for task in tasks)
            }
            for name, tasks in self.parts.items()
        }

    def first_differences(self, edited: Values) -> dict[str, float | None]:
        """The difference of each name's first metric, and of each metric as ``name:metric``."""
        found: dict[str, float | None] = {}
        for name, metrics in self.differences([edited]).items():
            for metric, each in metrics.items():
                found.setdefault(name, each["difference"])
                found[f"{name}:{metric}"] = each["difference"]
        return found

    def _difference(
        self, tasks: Sequence[str], metric: str, edited: Sequence[Values], seed: int
    ) -> dict[str, Any]:
        base = [value for task in tasks for value in self.base[task][metric]]
        after = [[v for task in tasks for v in each[task][metric]] for each in edited]
        told: dict[str, Any] = {"documents": len(base), "edits": len(edited)}
        if not edited:
            missing = dict.fromkeys(("edited", "difference", "low", "high"))
            return {"base": self._total(tasks, metric, base), **missing, **told}
        if self._is_mean(tasks[0], metric):
            means = [sum(column) / len(column) for column in zip(*after, strict=True)]
            interval = paired_difference(means, base, seed)
        else:
            interval = paired_statistic_difference(after, base, self._sum_up(tasks, metric), seed)
        if interval is None:  # a metric that is not a number, as after a destroyed model
            return dict.fromkeys(("base", "edited", "difference", "low", "high")) | told
        was = self._total(tasks, metric, base)
        found = {
            "base": was,
            "edited": was + interval.estimate,
            "difference": interval.estimate,
            "low": interval.low if len(base) > 1 else None,
            "high": interval.high if len(base) > 1 else None,
        }
        return {k: v if v is not None and isfinite(v) else None for k, v in found.items()} | told

    def _sum_up(self, tasks: Sequence[str], metric: str) -> Callable[[Sequence[Any]], float]:
        """The task's own way from the values of documents to its score."""
        ways = self.tasks[tasks[0]].aggregation()
        name = metric.partition(" (")[0]
        return ways.get(name, _mean)

    def _total(self, tasks: Sequence[str], metric: str, values: Sequence[Any]) -> float:
        return float(self._sum_up(tasks, metric)(list(values)))

    def _is_mean(self, task: str, metric: str) -> bool:
        from lm_eval.api.metrics import mean

        way = self._sum_up([task], metric)
        values = self.base[task].get(metric)
        numbers = values is not None and all(isinstance(v, int | float) for v in values)
        return numbers and (way is mean or way is _mean)


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
