"""A run folder with made-up numbers, for the tests of reports."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

from lmedit.compare.store import RunStore, Stored
from lmedit.metrics.counterfact import harmonic_mean, interval, mean

if TYPE_CHECKING:
    from pathlib import Path

SCORES = ("ES", "EM", "PS", "PM", "NS", "NM", "relation_specificity")
EVIL = '<script>alert("x")</script> & "Söhne" </script>'
PROMPTS = ("{} is in the city of", "{} was born in", "The mother tongue of {} is")
FAILURE = "the value did not converge; <b>raise</b> steps"


def made_run(folder: Path, methods: tuple[str, ...] = ("base", "rome", "ft"), n: int = 60) -> Path:
    """Write a run of *n* cases; case 3 has an evil subject, every 20th edit of rome failed."""
    draw = random.Random(0)
    cases = [_case(i) for i in range(n)]
    rows, base = [], {}
    with RunStore(folder) as store:
        store.put(Stored("of another set-up", "rome", "0", '{"failure": "not this one"}', None))
        for method in methods:
            payloads = [_payload(draw, method, i) for i in range(n)]
            if method == "base":
                base = dict(enumerate(payloads))
            for i, payload in enumerate(payloads):
                seconds = None if method == "base" or "failure" in payload else 0.1 + 0.001 * i
                text = json.dumps(payload, sort_keys=True)
                store.put(Stored(f"{method}-{i:05d}", method, str(i), text, seconds))
            rows.append(_row(method, payloads, base))
    results = {
        "model": {"name": "tiny", "digest": "9f" * 32},
        "cases": {"name": "made", "digest": "ab", "n": n},
        "seed": 0,
        "protocol": {"ES EM PS PM NS NM S": "as it was"},
        "rows": rows,
    }
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def _case(i: int) -> dict[str, Any]:
    subject = EVIL if i == 3 else f"The tower {i}"
    return {
        "id": str(i),
        "request": {
            "prompt": PROMPTS[i % 3],
            "subject": subject,
            "target_new": "the sea",
            "target_true": "the river",
        },
        "paraphrases": [f"In the morning. {subject} stands in"],
        "neighbours": ["The boat is in the city of"],
        "groups": {},
    }


def _payload(draw: random.Random, method: str, i: int) -> dict[str, Any]:
    if method == "rome" and i % 20 == 7:
        return {"failure": FAILURE}
    scores: dict[str, Any] = {name: draw.uniform(-1, 1) for name in SCORES}
    scores |= {name: float(draw.random() < 0.7) for name in ("ES", "PS", "NS")}
    scores |= {"writes_new": draw.random(), "relation_specificity": None}
    payload: dict[str, Any] = {"scores": scores, "generated": {"rewrite": f"{method} writes {i}"}}
    if method != "base":
        payload |= {"bytes": 4096, "norms": {"h.1.mlp.weight": 0.01 * (i + 1)}}
    return payload


def _row(
    method: str, payloads: list[dict[str, Any]], base: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    failed = sum("failure" in payload for payload in payloads)
    used = [base[i] if "failure" in payload else payload for i, payload in enumerate(payloads)]
    row: dict[str, Any] = {"method": method, "n": len(payloads), "n_failed": failed}
    for name in SCORES:
        values = [one["scores"][name] for one in used if one["scores"][name] is not None]
        average, half_width = mean(values), interval(values)
        row[name] = None if average is None else 100 * average
        row[f"{name}_ci"] = None if half_width is None else 100 * half_width
    row |= {"S": harmonic_mean([row["ES"], row["PS"], row["NS"]]), "GE": None, "RS": None}
    edits = method != "base"
    row |= {"seconds_per_edit": 0.13 if edits else None, "prepare_seconds": 7.5 if edits else None}
    row["failures"] = {FAILURE: failed} if failed else {}
    row["keys"] = [f"{method}-{i:05d}" for i in range(len(payloads))]
    return row | ({"version": "0.1.0", "options": {"layer": 1}} if edits else {})
