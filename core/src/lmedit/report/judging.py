"""Let a program of the user judge the free answers of a finished run: `lmedit judge`.

The program reads JSON lines and writes JSON lines. lmedit itself sends nothing anywhere.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmedit.errors import RunError, UsageError
from lmedit.metrics.counterfact import interval, mean
from lmedit.report.read import BASE, RESULTS, FinishedRun, read_run
from lmedit.storage.atomic import write_whole
from lmedit.storage.json_files import parse_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

VERDICTS = "judged.jsonl"
WILD = "wild "
OWN = "rewrite"


@dataclass(frozen=True)
class Answer:
    """One text of a run, with the question and the answer that is expected."""

    method: str
    case: str
    kind: str
    """``rewrite``: the fact's own prompt; ``paraphrase``: another one."""
    question: str
    expected: str
    text: str

    def line(self, number: int) -> str:
        """The JSON line for the judge."""
        told = {"question": self.question, "expected": self.expected, "text": self.text}
        return json.dumps({"id": number, **told}, ensure_ascii=False)


@dataclass(frozen=True)
class Judge:
    """The user's program, and what the protocol says about it."""

    command: str
    name: str
    version: str | None = None
    prompt: str | None = None
    """SHA-256 of the file with the judge's prompt."""

    def judge(self, answers: Sequence[Answer]) -> list[bool]:
        """The verdict of each of *answers*. Raises `RunError` if the program fails."""
        words = shlex.split(self.command)
        given = "".join(answer.line(n) + "\n" for n, answer in enumerate(answers))
        try:
            done = subprocess.run(  # noqa: S603  (the user's own program, without a shell)
                words, input=given, capture_output=True, text=True, encoding="utf-8", check=False
            )
        except OSError as error:
            raise RunError(f"--command {words[0]}: {error.strerror}; name a program") from error
        except UnicodeDecodeError as error:
            raise RunError(f"--command {words[0]} writes no UTF-8 ({error}); correct it") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
            raise RunError(f"--command {words[0]} ended with code {done.returncode}: {last}")
        return _verdicts(done.stdout, len(answers), words[0])


def _verdicts(text: str, count: int, program: str) -> list[bool]:
    found: dict[int, bool] = {}
    for line in filter(str.strip, text.splitlines()):
        try:
            verdict = parse_json(line)
            number, right = verdict["id"], verdict["right"]
        except (ValueError, KeyError, TypeError):
            number, right = None, None
        if not isinstance(right, bool) or isinstance(number, bool) or number in found:
            what = f'{program} wrote {line[:60]!r}; it must write {{"id": N, "right": true}}'
            raise RunError(f"--command {what} or false, once for each id")
        found[number] = right
    if found.keys() != set(range(count)):
        raise RunError(
            f"--command {program} judged {len(found)} of {count} answers; it must write one line "
            "for each id"
        )
    return [found[number] for number in range(count)]


def judge_of(command: str, name: str | None, version: str | None, prompt: Path | None) -> Judge:
    """The judge of the command line. Raises `UsageError` for an empty or unclosed command."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--command {command!r}: {error}; correct it") from error
    if not words:
        raise UsageError("--command is empty; name a program")
    digest = None if prompt is None else hashlib.sha256(prompt.read_bytes()).hexdigest()
    return Judge(command, name or words[0], version, digest)


def answers_of(run: FinishedRun) -> Iterator[Answer]:
    """The free answers of *run*: of the group `wild`, else of the group `generation`."""
    for method, entries in run.entries.items():
        for entry, case in zip(entries, run.texts, strict=True):
            if case is None:
                continue
            written = entry.payload.generated
            start = WILD if f"{WILD}{OWN}" in written else ""
            fact = case.request
            own = fact.prompt.replace("{}", fact.subject or "{}")
            asked = {OWN: own}
            asked |= {f"paraphrase {n}": p for n, p in enumerate(case.paraphrases, 1)}
            for kind, question in asked.items():
                if (text := written.get(start + kind)) is not None:
                    short = kind.partition(" ")[0]
                    yield Answer(method, entry.case_id, short, question, fact.target_new, text)


def judge_run(folder: Path, judge: Judge) -> dict[str, Any]:
    """Judge the texts of the run in *folder*; write the verdicts and the shares into it.

    Returns the judge with a row for each method. A failed edit counts with the unedited model's
    verdicts. Raises `RunError` if the run has no texts or the program fails; nothing is written.
    """
    run = read_run(folder)
    answers = list(answers_of(run))
    if not answers:
        raise RunError(
            f"the run {folder} has no texts to judge; run compare with --metrics wild, or "
            "--metrics generation"
        )
    right = judge.judge(answers)
    verdicts: dict[tuple[str, str, str], list[float]] = {}
    for answer, is_right in zip(answers, right, strict=True):
        key = (answer.method, answer.case, answer.kind)
        verdicts.setdefault(key, []).append(float(is_right))
    told = {
        "name": judge.name,
        "version": judge.version,
        "prompt": judge.prompt,
        "command": judge.command,
        "rows": [_row(run, method, verdicts) for method in run.methods],
    }
    lines = [
        json.dumps(
            {"method": a.method, "case": a.case, "kind": a.kind, "right": r, "text": a.text},
            ensure_ascii=False,
        )
        for a, r in zip(answers, right, strict=True)
    ]
    with write_whole(folder / VERDICTS) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    same = (judge.name, judge.version, judge.prompt)
    earlier = [
        each
        for each in run.raw.get("judged", [])
        if (each["name"], each["version"], each["prompt"]) != same
    ]
    write_json(folder / RESULTS, {**run.raw, "judged": [*earlier, told]})
    return told


def _row(
    run: FinishedRun, method: str, verdicts: dict[tuple[str, str, str], list[float]]
) -> dict[str, Any]:
    """The shares of right answers of *method*, in percent, with half of the 95 % interval."""
    row: dict[str, Any] = {"method": method}
    for kind in (OWN, "paraphrase"):
        shares = []
        for entry in run.entries[method]:
            who = BASE if entry.payload.failure is not None else method
            if found := verdicts.get((who, entry.case_id, kind)):
                shares.append(sum(found) / len(found))
        share, half = mean(shares), interval(shares)
        row |= {
            kind: None if share is None else 100 * share,
            f"{kind}_ci": None if half is None else 100 * half,
            f"{kind}_n": len(shares),
        }
    return row
