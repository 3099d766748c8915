"""Try every decoder of the installed transformers, and write docs/reference/families.md.

    python3 dev.py families                          # all of them, about 15 minutes
    python3 dev.py families -- --only llama mixtral  # some of them; the table stays as it is
    python3 dev.py families -- --only llama --write  # some of them; their rows are replaced
    python3 dev.py families -- --check               # compare with the table, write nothing

A worker process tries one model type after another (`trials.tried`). It has a limit of memory, and
each model type has a limit of time. If the worker ends or takes too long, a new one goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from families_page import PAGE, compared, page, read_outcomes, read_page
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Outcome = dict[str, tuple[str, str]]

SECONDS = 600
"""Time for one model type; most take a few seconds on a free processor."""
GIGABYTES = 8
"""Address space of the worker."""
MULTIMODAL = (
    *("glm4v", "internvl", "llava", "mistral3", "paligemma", "qwen2_5_vl", "qwen2_vl"),
    *("qwen3_vl", "qwen3_vl_moe", "smolvlm"),
)
"""Model types that read images too, and that transformers does not list as causal."""


def kinds() -> list[str]:
    """All model types to try."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    return sorted({*CAUSAL, *MULTIMODAL})


class Worker:
    """A process that tries model types, one for each line that it reads."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def tried(self, kind: str) -> Outcome | str:
        """The outcome for *kind*, or why there is none."""
        assert self.process.stdin is not None
        print(kind, file=self.process.stdin, flush=True)
        try:
            line = self.lines.get(timeout=SECONDS)
        except queue.Empty:
            return f"takes more than {SECONDS} s"
        if not line:
            return f"the process ended with code {self.process.wait(SECONDS)}"
        outcome: Outcome = json.loads(line)
        return outcome

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait(SECONDS)


def swept(asked: Iterable[str]) -> Iterator[tuple[str, Outcome]]:
    """The outcome for each model type of *asked*."""
    worker: Worker | None = None
    for kind in tqdm(list(asked), disable=None, unit="model type"):
        worker = worker or Worker()
        found = worker.tried(kind)
        if isinstance(found, str):
            worker.stop()
            worker = None
            yield kind, {"loads": ("error", found)}
        else:
            yield kind, found
    if worker is not None:
        worker.stop()


def work() -> None:
    """Read model types from stdin, and print the outcome of each as one line."""
    import resource

    limit = GIGABYTES * 1024**3
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    from trials import tried

    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["LMEDIT_CACHE"] = cache
            print(json.dumps(tried(line.strip())), file=answers, flush=True)


def main() -> None:
    """Read the command line; sweep, then write or compare the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="try these model types alone")
    parser.add_argument("--write", action="store_true", help="with --only: replace their rows")
    parser.add_argument("--check", action="store_true", help="compare with the table")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work()
        return
    found: dict[str, Any] = dict(swept(asked.only or kinds()))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))
    if asked.only and asked.write:
        found = read_outcomes(PAGE.read_text(encoding="utf-8")) | found
    elif asked.only or asked.check:
        differences = compared(found, read_page(PAGE.read_text(encoding="utf-8")))
        sys.stdout.write("\n".join([page(found) if asked.only else "", *differences, ""]))
        sys.exit(1 if differences else 0)
    PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
