"""The official addresses of known sets of cases, and the place of a downloaded set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmedit.storage.cache import cache_folder

if TYPE_CHECKING:
    from pathlib import Path

ROME = "https://rome.baulab.info/data/dsets"
MEMIT = "https://memit.baulab.info/data/dsets"
KNOWEDIT = "https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark"
MQUAKE = "https://raw.githubusercontent.com/princeton-nlp/MQuAKE/main/datasets"
RIPPLE = "https://github.com/edenbiran/RippleEdits/raw/main/data/benchmark"


@dataclass(frozen=True)
class CaseSource:
    """Where a set of cases is published; size and digest are None if nobody stated them."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None


SOURCES = {
    source.name: source
    for source in (
        CaseSource(
            "counterfact",
            f"{ROME}/counterfact.json",
            45108470,
            "d017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f",
        ),
        CaseSource("multi_counterfact", f"{MEMIT}/multi_counterfact.json"),
        CaseSource("zsre", f"{ROME}/zsre_mend_eval.json", 8091864),
        CaseSource("known_1000", f"{ROME}/known_1000.json"),
        CaseSource("wiki_counterfact", f"{KNOWEDIT}/wiki_counterfact/test_cf.json"),
        CaseSource("mquake-cf", f"{MQUAKE}/MQuAKE-CF.json"),
        CaseSource("mquake-cf-3k", f"{MQUAKE}/MQuAKE-CF-3k-v2.json"),
        CaseSource("ripple-popular", f"{RIPPLE}/popular.json"),
        CaseSource("ripple-random", f"{RIPPLE}/random.json"),
        CaseSource(
            "ripple-recent",
            f"{RIPPLE}/recent.json",
            19658316,
            "bc71807ea72280e2587bd1974fc79ae7e23aa24b1d5887bcdced40d448910547",
        ),
    )
}


def pulled_file(name: str) -> Path:
    """The path of the set *name* after its download."""
    return cache_folder() / "cases" / f"{name}.json"
