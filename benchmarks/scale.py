"""A large comparison on paper: hours, bytes moved, and the first bottleneck.

    python benchmarks/scale.py

All of CounterFact, eight methods and three seeds on two models, on 1, 8 and 64 accelerators. The
operations are those of `lmedit.planning` and of the methods' own plans, on the models' shapes. A
constant is measured here, published, or assumed; the tables say which. `docs/explanation/scale.md`
holds what this script prints.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig

from lmedit import Lm, build_options, load
from lmedit.compare.worker import AT_ONCE
from lmedit.pipeline import work_of
from lmedit.planning import block_flops, head_flops, weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit.types import Work

RESULTS = Path(__file__).parent / "results"
CASES, SEEDS, MACHINES = 20_877, 3, (1, 8, 64)
METHODS = ("rome", "memit", "ultraedit", "kn", "mend", "ke", "ft", "ft-l")
SHAPES = {
    "GPT-J-6B": GPTJConfig(),
    "Llama-3-8B": LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
}
XL = GPT2Config(n_layer=48, n_embd=1600, n_head=25)


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file of `benchmarks/results`."""
    found = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return list(found["rows"])


@dataclass(frozen=True)
class Constant:
    """A number, what it is, and where it comes from."""

    name: str
    value: float
    unit: str
    source: str


def constants() -> dict[str, Constant]:
    """All constants by a short name."""
    (paired,) = read_rows("rome_edit_xl")
    (store,) = read_rows("driver_store")
    plain, took = 1e9 * paired["plain_gflop"], 2.0
    return {
        "edit": Constant(
            "a ROME edit of GPT-2 XL with the released code", took, "s", "published: ROME, A6000"
        ),
        "plain": Constant(
            "operations of that edit, in plain form", plain, "", "measured: rome_edit_xl.json"
        ),
        "rate": Constant(
            "operations of one accelerator in a second",
            plain / took,
            "",
            "computed: the two lines above",
        ),
        "least": Constant(
            "the least time of an edit", 0.1, "s", "published for KE and MEND: about 0.1 s"
        ),
        "texts": Constant("texts of a case", 26, "", "measured: evaluation.py"),
        "tokens": Constant("tokens of a text", 12, "", "assumed"),
        "link": Constant(
            "bytes that the file server sends in a second", 1.25e9, "B", "assumed: 10 Gbit/s"
        ),
        "disk": Constant("bytes that a machine loads in a second", 1e9, "B", "assumed"),
        "row": Constant(
            "bytes of a result in the store",
            store["bytes_per_row"],
            "B",
            "measured: driver_store.json",
        ),
        "store": Constant(
            "results that the driver stores in a second",
            store["rows_per_second"],
            "",
            "measured: driver_store.json",
        ),
    }


def outline(config: Any) -> Lm:
    """A model of this shape in float16, without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    return Lm(model, None, name="shape")


def plans(lm: Lm, names: Sequence[str] = METHODS) -> dict[str, Mapping[str, Work]]:
    """What each method plans for one edit, and for its preparation."""
    found = {}
    for name in names:
        loaded = load(name)
        found[name] = work_of(loaded, lm, build_options(loaded.method, {}, lm))
    return found


def prepared_bytes(lm: Lm) -> float:
    """The bytes of the preparations of all methods, as a worker loads them."""
    total = 0.0
    for name, works in plans(lm).items():
        for part, size in works["edit"].memory.items():
            if part.startswith("the factor of C"):
                loaded = load(name)
                options = build_options(loaded.method, {}, lm)
                total += size * len(getattr(options, "blocks", [0]))
            if part == "network, float32":
                total += size / 2  # the plan counts the weights and their copy
    return total


@dataclass(frozen=True)
class Paper:
    """The plan of one model: seconds for one accelerator, and bytes."""

    edits: Mapping[str, float]
    """Seconds of an edit by method."""
    scoring: float
    """Seconds to score one edit."""
    prepare: float
    """Seconds of all preparations on one accelerator."""
    model: float
    prepared: float

    @property
    def case(self) -> float:
        """Seconds of one case with all methods under one seed."""
        return sum(self.edits.values()) + len(self.edits) * self.scoring


def paper(lm: Lm, known: Mapping[str, Constant]) -> Paper:
    """The plan on paper of the model *lm*."""
    rate, works = known["rate"].value, plans(lm)
    tokens = known["texts"].value * known["tokens"].value
    score = block_flops(lm, tokens, lm.n_layers) + head_flops(lm, 2 * known["texts"].value)
    least = known["least"].value
    return Paper(
        {name: max(least, each["edit"].flops / rate) for name, each in works.items()},
        score / rate,
        sum(each["prepare"].flops for each in works.values() if "prepare" in each) / rate,
        float(weights(lm)),
        prepared_bytes(lm),
    )


ROWS = CASES * (1 + len(METHODS) * SEEDS)
"""Results: the base once, and each method under each seed."""


@dataclass(frozen=True)
class Day:
    """One comparison on some accelerators."""

    machines: int
    work: float
    """Seconds of edits and scores."""
    start: float
    """Seconds until the last accelerator has loaded the model and the preparations."""
    moved: float
    """Bytes from the file server."""

    @property
    def seconds(self) -> float:
        """From the start to the last result, without the preparations."""
        return self.start + self.work


def day(plan: Paper, machines: int, known: Mapping[str, Constant]) -> Day:
    """The comparison of *plan* on so many accelerators."""
    each = plan.model + plan.prepared
    groups = -(-CASES // AT_ONCE)
    share = -(-groups // machines) / groups  # of the accelerator with the most groups
    work = CASES * SEEDS * plan.case * share
    start = max(each / known["disk"].value, machines * each / known["link"].value)
    return Day(machines, work, start, machines * each)


def full_first(plan: Paper, known: Mapping[str, Constant]) -> dict[str, float]:
    """By bottleneck: with how many accelerators it is busy all the time."""
    each = (plan.model + plan.prepared) / known["link"].value
    whole = CASES * SEEDS * plan.case
    return {
        "the file server, at the start: half of the time": (whole / each) ** 0.5,
        "the divided cases: one group for each": float(-(-CASES // AT_ONCE)),
        "the driver's store": known["store"].value * plan.case / len(METHODS),
    }


def number(value: float) -> str:
    """*value* with three digits."""
    if value >= 1e5 or 0 < value < 1e-3:
        return f"{value:.2e}"
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers if they begin with a digit."""
    line = "|" + "|".join("---" if n == 0 else "---:" for n in range(len(head))) + "|"
    return "\n".join(["| " + " | ".join(head) + " |", line, *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def calibration() -> list[list[str]]:
    """Planned against measured operations of an edit of GPT-2 XL's shape."""
    counted = {row["method"]: row["gflop"] for row in read_rows("edit_seconds_xl")}
    rows = []
    for name, works in plans(outline(XL), list(counted)).items():
        planned = works["edit"].flops / 1e9
        rows.append([name, *map(number, (planned, counted[name], planned / counted[name]))])
    return rows


def page() -> str:
    """All tables, as the page of the docs holds them."""
    known = constants()
    papers = {name: paper(outline(config), known) for name, config in SHAPES.items()}
    parts = [
        table(
            ["constant", "value", "source"],
            [[c.name, f"{number(c.value)} {c.unit}".strip(), c.source] for c in known.values()],
        ),
        table(["GPT-2 XL", "planned, 10^9", "measured, 10^9", "planned / measured"], calibration()),
        table(
            ["seconds of an edit", *papers],
            [[name, *(number(p.edits[name]) for p in papers.values())] for name in METHODS]
            + [["its scores", *(number(p.scoring) for p in papers.values())]]
            + [["a case with all methods", *(number(p.case) for p in papers.values())]],
        ),
        table(["the whole comparison", *_columns(papers)], _whole(papers, known)),
        table(
            ["full with so many accelerators", *papers],
            [
                [name, *(number(full_first(p, known)[name]) for p in papers.values())]
                for name in full_first(next(iter(papers.values())), known)
            ],
        ),
    ]
    return "\n\n".join(parts)


def _columns(papers: Mapping[str, Paper]) -> list[str]:
    return [f"{name}, {count}" for name in papers for count in MACHINES]


def _whole(papers: Mapping[str, Paper], known: Mapping[str, Constant]) -> list[list[str]]:
    plans_ = [(plan, day(plan, count, known)) for plan in papers.values() for count in MACHINES]
    rows: dict[str, list[str]] = {
        "hours": [number(d.seconds / 3600) for _, d in plans_],
        "of these, loading": [number(d.start / 3600) for _, d in plans_],
        "hours to prepare, once, on one": [number(p.prepare / 3600) for p, _ in plans_],
        "GB to the accelerators": [number(d.moved / 1e9) for _, d in plans_],
        "GB of results": [number(ROWS * known["row"].value / 1e9) for _ in plans_],
        "results in a second": [number(ROWS / d.seconds) for _, d in plans_],
        "share of the store's rate": [
            f"{ROWS / d.seconds / known['store'].value:.2%}" for _, d in plans_
        ],
    }
    return [[name, *cells] for name, cells in rows.items()]


def store_table() -> str:
    """What the simulation of the driver's store measured."""
    (found,) = read_rows("driver_store")
    rows = [
        ["workers at once", number(found["groups_at_once"])],
        ["results", f"{found['rows']:,}"],
        ["seconds that the invented workers need", number(found["invented_seconds"])],
        ["seconds that the driver needs", number(found["seconds"])],
        ["of these, seconds of the processor", number(found["processor_seconds"])],
        ["results in a second", number(found["rows_per_second"])],
        ["bytes of a result in the database", number(found["bytes_per_row"])],
    ]
    return table(["simulation", "value"], rows)


PAGE = Path(__file__).parents[1] / "docs" / "explanation" / "scale.md"


def put_into_page(parts: Mapping[str, str]) -> None:
    """Write the tables of each part into the page of the docs."""
    text = PAGE.read_text(encoding="utf-8")
    for name, tables in parts.items():
        head, _, rest = text.partition(f"<!-- {name} -->\n")
        _, end, rest = rest.partition(f"<!-- /{name} -->")
        text = f"{head}<!-- {name} -->\n{tables}\n{end}{rest}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    put_into_page({"scale": page(), "store": store_table()})
    print(page())
