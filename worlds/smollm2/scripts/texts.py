"""Write text.txt and heldout.txt: real English that is free to ship.

    python worlds/smollm2/scripts/texts.py --wordnet /usr/share/wordnet

The lines are paragraphs of Python's own documentation (the language reference that `pydoc` ships
and the standard library's docstrings) and WordNet's definitions of three nouns each, half and half
where there are paragraphs enough. No line of one file is in the other.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

from places import PACKAGE_DIR
from wordnet import Nouns

TEXT_LINES, HELDOUT_LINES = 3000, 300
SHORTEST, LONGEST = 80, 600
DEFINITIONS = 3


def docstrings() -> list[str]:
    """Every docstring of Python's standard library, without its tests."""
    found = []
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not {"test", "tests", "site-packages", "lib2to3"} & set(path.parts):
            tree = ast.parse(path.read_bytes())
            holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            nodes = [node for node in ast.walk(tree) if isinstance(node, holders)]
            found += [text for node in nodes if (text := ast.get_docstring(node))]
    return found


def documentation() -> list[str]:
    """Paragraphs of prose from Python's language reference and its library's docstrings."""
    paragraphs = []
    for source in [*(topics[topic] for topic in sorted(topics)), *docstrings()]:
        for block in re.split(r"\n\s*\n", source):
            text = re.sub(r"\*(\w[\w ]*)\*", r"\1", " ".join(block.split()))
            prose = re.match(r"[A-Z][a-z]* [a-z]", text) and text.endswith(".")
            code = re.search(r"::=|>>>|\*|=|[{}|_<>\[\]\\]|\w\.\w|\w\(", text)
            if prose and not code and SHORTEST <= len(text) <= LONGEST:
                paragraphs.append(text)
    return list(dict.fromkeys(paragraphs))


def definitions(nouns: Nouns, rng: random.Random) -> list[str]:
    """Lines of a few nouns' definitions, in random order; each noun comes once."""
    said = []
    for synset in nouns.synsets.values():
        name, meaning = synset.names[0], synset.gloss.split('; "')[0].strip()
        said.append(f"{name[0].upper()}{name[1:]}: {meaning}.")
    rng.shuffle(said)
    return [" ".join(said[i : i + DEFINITIONS]) for i in range(0, len(said), DEFINITIONS)]


def main() -> None:
    """Write the two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(f"texts:{options.seed}")
    prose = documentation()
    rng.shuffle(prose)
    half = HELDOUT_LINES // 2
    more = definitions(Nouns(options.wordnet), rng)
    heldout = prose[:half] + more[: HELDOUT_LINES - half]
    first = prose[half : half + TEXT_LINES // 2]
    text = first + more[HELDOUT_LINES - half :][: TEXT_LINES - len(first)]
    for name, lines in {"text.txt": text, "heldout.txt": heldout}.items():
        rng.shuffle(lines)
        (PACKAGE_DIR / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(prose)} paragraphs, {len(first)} of them in text.txt", file=sys.stderr)


if __name__ == "__main__":
    main()
