"""One edit as text for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def edit_text(result: dict[str, Any]) -> str:
    """Before and after side by side: the prompt, a paraphrase, a neighbour, the targets."""
    request, before, after = result["request"], result["before"], result["after"]
    prompts = {"prompt": request["prompt"].replace("{}", request["subject"])}
    prompts |= {kind: probe["prompt"] for kind, probe in before["probes"].items()}
    lines = []
    for kind, prompt in prompts.items():
        was = before if kind == "prompt" else before["probes"][kind]
        now = after if kind == "prompt" else after["probes"][kind]
        lines += [f"{kind}: {prompt}", f"  before  {_top(was)}", f"  after   {_top(now)}"]
    lines += measured_lines(request, result)
    lines.append(f"{result['method']} took {result['seconds']:.2f} s")
    return "\n".join(lines)


def measured_lines(request: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """The answers' probabilities before and after, and what survives rounding, where measured."""
    before, after = measured["before"], measured["after"]
    lines = [
        f"P({request.get(which)}): {before[which]:.3f} -> {after[which]:.3f}"
        for which in ("target_new", "target_true")
        if before.get(which) is not None and after.get(which) is not None
    ]
    if measured.get("survives") is not None:
        left = f"{100 * measured['survives']:.1f} %"
        lines.append(f"{left} of the edit survives rounding to {measured.get('number_type')}")
    return lines


def _top(look: dict[str, Any]) -> str:
    return ", ".join(f"{top['token'].strip() or repr(top['token'])} {top['p']:.3f}"
                     for top in look["top"])  # fmt: skip
