"""`lmedit judge`: a program of the user judges the texts of a run."""

from __future__ import annotations

import json
import re
import shlex
import sys
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jsonschema import Draft202012Validator

from lmedit.compare.store import RunStore, Stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]

JUDGE = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    assert set(asked) == {"id", "question", "expected", "text"}
    print(json.dumps({"id": asked["id"], "right": asked["expected"] in asked["text"]}))
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of three cases: the base is never right, ft twice, and its last edit failed."""
    folder = tmp_path / "run"
    folder.mkdir()
    cases: list[dict[str, Any]] = []
    rows = []
    for i in range(3):
        request = {"prompt": "{} is in", "subject": f"T{i}", "target_new": "Rome"}
        cases.append({"id": str(i), "request": request, "paraphrases": ["Where?", "Seek"]})
    texts = {"base": [" Paris"] * 3, "ft": [" Rome.", " Rome on", ""]}
    with RunStore(folder) as store:
        for method, each in texts.items():
            for i, text in enumerate(each):
                wild = {"wild rewrite": text, "wild paraphrase 1": text, "wild paraphrase 2": " x"}
                payload: dict[str, Any] = {
                    "scores": {"ES": 1.0},
                    "generated": {**wild, "rewrite": ""},
                }
                if (method, i) == ("ft", 2):
                    payload = {"failure": "no"}
                store.put(Stored(f"{method}{i}", method, str(i), json.dumps(payload), None))
            keys = [f"{method}{i}" for i in range(3)]
            rows.append({"method": method, "n": 3, "n_failed": 0, "keys": keys, "failures": {}})
    head = {"model": {"name": "m", "digest": ""}, "cases": {"name": "c", "digest": "", "n": 3}}
    results = {**head, "rows": rows, "protocol": {}, "seed": 0, "differences": []}
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def program(text: str) -> str:
    Path("judge.py").write_text(text, encoding="utf-8")
    return shlex.join([sys.executable, "judge.py"])


def test_verdicts_are_in_the_run(lmedit: Run, run: Path) -> None:
    Path("prompt.txt").write_text("Is it right?", encoding="utf-8")
    named = ("--name", "contains", "--release", "1", "--prompt", "prompt.txt")
    done = lmedit("judge", run, "--command", program(JUDGE), *named)
    assert done.exit_code == 0, done.stderr
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    (told,) = results["judged"]
    schema = json.loads((files("lmedit") / "schemas/results.schema.json").read_text("utf-8"))
    Draft202012Validator(schema["properties"]["judged"]).validate(results["judged"])
    assert (told["name"], told["version"]) == ("contains", "1")
    assert told["prompt"] == sha256(b"Is it right?").hexdigest()
    base, ft = told["rows"]
    assert (base["rewrite"], base["paraphrase"], base["rewrite_n"]) == (0, 0, 3)
    assert (ft["rewrite"], ft["paraphrase"]) == pytest.approx((200 / 3, 100 / 3))
    assert ft["rewrite_n"] == 3  # the failed edit counts with the base's answer
    lines = (run / "judged.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(json.loads(line)["right"] for line in lines) == 4
    assert len(lines) == 15
    assert "ft      3  66.7" in done.stdout
    again = lmedit("judge", run, "--command", program(JUDGE), "--name", "other", "--json")
    assert json.loads(again.stdout)["name"] == "other"
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in results["judged"]] == ["contains", "other"]
    lmedit("judge", run, "--command", program(JUDGE), *named)
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in results["judged"]] == ["other", "contains"]
    Path("other").mkdir()
    for name in ("results.json", "cases.json", "run.sqlite"):
        Path("other", name).write_bytes((run / name).read_bytes())
    shown = lmedit("report", run, "--html", "page.html")
    assert shown.exit_code == 0, shown.stderr
    (line,) = re.findall(r"^contains 1 +ft .*$", shown.stdout, re.MULTILINE)
    assert line.split()[3] == "3"
    assert f"66.7 \u00b1 {ft['rewrite_ci']:.1f}" in line
    assert f"33.3 \u00b1 {ft['paraphrase_ci']:.1f}" in line
    page = Path("page.html").read_text(encoding="utf-8")
    part = page.partition('<section id="judged"')[2].partition("</section>")[0]
    assert f"66.7 \u00b1 {ft['rewrite_ci']:.1f}" in part
    assert part.count("contains 1") == part.count(">other<") == 2
    markdown = lmedit("report", run, "--format", "markdown").stdout
    assert f"| contains 1 | ft | 3 | 66.7 \u00b1 {ft['rewrite_ci']:.1f} | 3 |" in markdown
    both = lmedit("report", run, "other").stdout
    assert len(re.findall(r"^contains 1 +(?:run|other)/ft", both, re.MULTILINE)) == 2


def test_a_run_without_a_judge_shows_no_shares(lmedit: Run, run: Path) -> None:
    assert "judge" not in lmedit("report", run, "--html", "page.html").stdout
    assert 'id="judged"' not in Path("page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise SystemExit('no key')", "ended with code 1: no key"),
        ("print('yes')", "wrote 'yes'; it must write"),
        ('print(\'{"id": 0, "right": 1}\')', "it must write"),
        ('print(\'{"id": 0, "right": true}\')', "judged 1 of 15 answers"),
        ('print(\'{"id": 0, "right": true}\\n\' * 2)', "once for each id"),
    ],
)
def test_a_judge_that_fails_is_one_line(lmedit: Run, run: Path, text: str, told: str) -> None:
    before = (run / "results.json").read_bytes()
    done = lmedit("judge", run, "--command", program(text))
    assert done.exit_code == 1
    assert told in done.stderr.splitlines()[-1]
    assert (run / "results.json").read_bytes() == before
    assert not (run / "judged.jsonl").exists()


def test_wrong_commands_and_runs_are_one_line(lmedit: Run, run: Path) -> None:
    assert lmedit("judge", run, "--command", "").exit_code == 2
    assert lmedit("judge", run, "--command", "'x").exit_code == 2
    done = lmedit("judge", run, "--command", "no-such-program-here")
    assert (done.exit_code, "no-such-program-here: No such file" in done.stderr) == (1, True)
    (run / "cases.json").unlink()
    done = lmedit("judge", run, "--command", "x")
    assert "has no texts to judge" in done.stderr
