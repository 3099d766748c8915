"""The first second: from the shell to the prompt, and what the time is spent on.

    python benchmarks/first_second.py

Starts each command in a process of its own, in turns, and writes the medians of five. `import
torch` stands beside it: no command with a model can be faster. The edit runs with the plain imports
too (`plain`), and both are measured in the same turn. The last rows have the modules whose own code
takes longest to import, before and after, from `python -X importtime`.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from paired import report

FACT = ["--prompt", "{} is in the city of", "--subject", "The Eiffel Tower", "--target", "Rome"]
PROGRAM = "from lmedit.cli import main; main()"
PLAIN = "from lmedit.cli import main; main.main()"
EDIT = ["edit", "ft", *FACT, "--force", "-O", "edit.safetensors"]
WORK = {
    "import torch": ["-c", "import torch"],
    "edit ft": ["-c", PROGRAM, *EDIT],
    "edit ft, plain imports": ["-c", PLAIN, *EDIT],
    "edit --help": ["-c", PROGRAM, "edit", "--help"],
    "methods": ["-c", PROGRAM, "methods"],
}
LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s*(\S+)")
PACKAGES = 12
"""How many packages of the import are told."""


def seconds_of(given: list[str], folder: str) -> tuple[float, float]:
    """Seconds on the clock, and of the processor, of a Python process."""
    before = os.times()
    started = time.perf_counter()
    run(given, folder)
    after = os.times()
    used = after.children_user + after.children_system
    return time.perf_counter() - started, used - before.children_user - before.children_system


def run(given: list[str], folder: str) -> str:
    """Run Python; its stderr."""
    return subprocess.run(
        [sys.executable, *given],
        check=True,
        timeout=600,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ).stderr


def imports_of(given: list[str], folder: str) -> dict[str, float]:
    """Seconds that the modules of each package take to import, without those they import."""
    found: dict[str, float] = {}
    for line in run(["-X", "importtime", *given], folder).splitlines():
        if match := LINE.match(line):
            package = ".".join(match[3].split(".")[: 2 if match[3].startswith("torch.") else 1])
            found[package] = found.get(package, 0.0) + int(match[1]) / 1e6
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    flags = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in WORK}
    with tempfile.TemporaryDirectory() as folder:
        for given in WORK.values():  # files are read into the system's cache
            run(given, folder)
        for _ in range(flags.times):
            for name, given in WORK.items():
                times[name].append(seconds_of(given, folder))
        before = imports_of(WORK["edit ft, plain imports"], folder)
        after = imports_of(WORK["edit ft"], folder)
    rows: list[dict[str, Any]] = [
        {
            "command": name,
            "seconds": statistics.median(wall for wall, _ in each),
            "cpu_seconds": statistics.median(cpu for _, cpu in each),
            "times": flags.times,
        }
        for name, each in times.items()
    ]
    largest = sorted(before, key=lambda name: -before[name])[:PACKAGES]
    rows += [
        {"imports": name, "plain_ms": 1e3 * before[name], "our_ms": 1e3 * after.get(name, 0.0)}
        for name in largest
    ]
    rows.append(
        {
            "imports": "all",
            "plain_ms": 1e3 * sum(before.values()),
            "our_ms": 1e3 * sum(after.values()),
        }
    )
    report("first_second", rows)


if __name__ == "__main__":
    main()
