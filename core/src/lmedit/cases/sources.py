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
WIKIBIGEDIT = "https://huggingface.co/datasets/lukasthede/WikiBigEdit/resolve/main/wiki_big_edit"
WEEKS = (
    "20240201_20240220",
    "20240220_20240301",
    "20240301_20240320",
    "20240320_20240401",
    "20240401_20240501",
    "20240501_20240601",
    "20240601_20240620",
    "20240620_20240701",
)
"""The time steps of WikiBigEdit, as its files name them."""
RIPPLE = "https://github.com/edenbiran/RippleEdits/raw/main/data/benchmark"


@dataclass(frozen=True)
class CaseSource:
    """Where a set of cases is published; size and digest are None if nobody stated them."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    hub: str | None = None
    """The id of the data set of the hub, if the set is read from there and not pulled."""
    split: str | None = None
    """The split of a data set of the hub; None: all splits."""


def _of_hub(name: str, hub: str, split: str | None = None) -> CaseSource:
    return CaseSource(name, f"https://huggingface.co/datasets/{hub}", hub=hub, split=split)


REMASTERED = "henryzhongsc/MQuAKE-Remastered"


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
        _of_hub("mquake-remastered", REMASTERED, "CF3k"),
        _of_hub("mquake-remastered-cf9k", REMASTERED, "CF9k"),
        _of_hub("mquake-remastered-cf6334", REMASTERED, "CF6334"),
        _of_hub("mquake-remastered-t", REMASTERED, "T"),
        _of_hub("qaedit", "WenDingY/QAEdit"),
        _of_hub("ultraeditbench", "XiaojieGu/UltraEditBench"),
        _of_hub("wikibigedit", "lukasthede/WikiBigEdit"),
        *(
            CaseSource(f"wikibigedit-{number}", f"{WIKIBIGEDIT}_{weeks}.json")
            for number, weeks in enumerate(WEEKS, 1)
        ),
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


def place_on_hub(name: str) -> tuple[str, str | None]:
    """The hub id of the set *name* and its split; a name that is no set is an id itself."""
    source = SOURCES.get(name)
    return (source.hub, source.split) if source and source.hub else (name, None)


def pulled_file(name: str) -> Path:
    """The path of the set *name* after its download."""
    return cache_folder() / "cases" / f"{name}.json"
