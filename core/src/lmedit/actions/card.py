"""The card of published edits: README.md with the facts, the measurements and the way back.

Texts of facts, methods and models are untrusted. In the table they are escaped as Markdown. All
else is JSON in a block whose fence is longer than any run of backticks in it. The front matter
holds only checked names.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmedit.errors import RequestError
from lmedit.storage.escapes import for_json, for_markdown
from lmedit.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HUB_ID = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?(?:/[A-Za-z0-9](?:[\w.-]{0,94}\w)?)?")
"""A model's or repository's id at the hub: NAME, or OWNER/NAME."""
LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,39}")
UNKNOWN = "unknown"
SHOWN = 20
"""How many facts of an edit of many facts the card lists."""
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Card:
    """What a card tells. *facts* are those of each patch, with its id, without local paths."""

    kind: str
    """adapter, or model."""
    base: str
    """The base's name."""
    base_id: str | None
    """The base's id at the hub, if the user named it."""
    base_digest: str
    licence: str | None
    """The licence of the base; None if it is unknown."""
    facts: Sequence[Mapping[str, Any]]
    proof: Mapping[str, Any]
    """What lmedit measured when it wrote the folder."""


def check_hub_id(text: str, flag: str) -> str:
    """Return *text*. Raises `RequestError` if it is no id of the hub; *flag* is where it stood."""
    if not HUB_ID.fullmatch(text) or ".." in text or "--" in text:
        raise RequestError(f"{flag} {text!r} is no id of the hub; write OWNER/NAME")
    return text


def check_licence(text: str) -> str:
    """Return *text*. Raises `RequestError` if it is no identifier of a licence."""
    if not LICENCE.fullmatch(text):
        raise RequestError(f"--licence {text!r} is no identifier; write one like apache-2.0")
    return text.lower()


def card_text(card: Card) -> str:
    """The whole README.md."""
    parts = [_front(card), _head(card), _table(card), _use(card), _back(card), _licence(card)]
    parts += ["## How it was made", *(_block(each) for each in _list_facts(card)), _digests(card)]
    return "\n\n".join(parts) + "\n"


def _front(card: Card) -> str:
    """The front matter: only checked names, each a JSON string, which YAML reads as it is."""
    values: dict[str, Any] = {
        "license": card.licence or UNKNOWN,
        "library_name": "peft" if card.kind == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lmedit", "knowledge-editing"],
    }
    if card.base_id:
        relation = "adapter" if card.kind == "adapter" else "finetune"
        values |= {"base_model": card.base_id, "base_model_relation": relation}
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "---"])


def _head(card: Card) -> str:
    what = (
        "A LoRA adapter for [peft](https://huggingface.co/docs/peft). The base model stays as it is"
        if card.kind == "adapter"
        else "A whole model for transformers, with the edits in its weights"
    )
    count = len(card.facts)
    return (
        f"# {for_markdown(card.base)} with {count} edit{'s' if count > 1 else ''}\n\n{what}.\n"
        "lmedit changed single facts in the model. **The model may say other things than before "
        "also where no fact is listed.** The table shows what was measured."
    )


def _table(card: Card) -> str:
    rows = [
        "| fact | new answer | method | P(new answer) | P(old answer) | perplexity | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for facts in card.facts:
        requests = [*facts.get("requests", []), *filter(None, [facts.get("request")])]
        for request in requests[:SHOWN]:
            rows.append(_row(facts, request))
        if len(requests) > SHOWN:
            rows.append(f"| and {len(requests) - SHOWN} more facts of this edit | | | | | | |")
    return "\n".join(["## What was changed", "", *rows])


def _row(facts: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    metrics = facts.get("metrics") or {}
    before, after = metrics.get("before") or {}, metrics.get("after") or {}
    prompt = str(request.get("prompt", "")).replace("{}", str(request.get("subject") or "{}"))
    cells = [prompt, str(request.get("target_new", "")), str(facts.get("method"))]
    cells += [_pair(before, after, name) for name in ("target_new", "target_true", "perplexity")]
    cells.append(str(metrics.get("verdict") or NOT_MEASURED))
    return f"| {' | '.join(for_markdown(cell) for cell in cells)} |"


def _pair(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> str:
    """A value before and after the edit."""
    was, now = before.get(name), after.get(name)
    if not isinstance(was, int | float) or not isinstance(now, int | float):
        return NOT_MEASURED
    return f"{was:.3f} to {now:.3f}"


def _use(card: Card) -> str:
    base = json.dumps(card.base_id or "BASE")
    lines = ["from transformers import AutoModelForCausalLM"]
    if card.kind == "adapter":
        lines += [
            "from peft import PeftModel",
            f"model = AutoModelForCausalLM.from_pretrained({base})",
            'model = PeftModel.from_pretrained(model, "THIS_FOLDER")',
        ]
    else:
        lines += ['model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")']
    return "\n".join(["## Use it", "", "```python", *lines, "```"])


def _back(card: Card) -> str:
    if card.kind == "adapter":
        return (
            "## Take it out\n\nDo not load the adapter, or call `model.unload()` of peft. "
            "`with model.disable_adapter():` takes it out for a block. `lmedit import` reads the "
            "adapter as a patch."
        )
    ids = " ".join(str(facts["id"])[:12] for facts in card.facts)
    return (
        "## Take it out\n\n`lmedit-edits/` holds the old values of the changed matrices, and each "
        f"edit as a patch. This command gives the base again, bit for bit:\n\n```console\n"
        f"lmedit revert THIS_FOLDER {ids}\n```"
    )


def _licence(card: Card) -> str:
    if card.licence is None:
        return (
            "## Licence\n\nThe licence of the base model is unknown to lmedit. Find it out before "
            "you share this."
        )
    return f"## Licence\n\nThe base model has the licence {card.licence}. It holds for this too."


def _list_facts(card: Card) -> list[Any]:
    """The facts of each edit as JSON values, with the first facts of a long list."""
    return [
        {
            name: value[:SHOWN] if name == "requests" else value
            for name, value in facts.items()
            if name != "prepared_from"
        }
        for facts in card.facts
    ]


def _digests(card: Card) -> str:
    told = {"base": card.base, "digest of the base": card.base_digest, "lmedit": __version__}
    return f"## Digests and proof\n\n{_block({**told, **card.proof})}"


def _block(value: Any) -> str:
    """*value* as JSON in a block that no text in it can end."""
    text = for_json(json.dumps(value, indent=1, ensure_ascii=False))
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}json\n{text}\n{fence}"
