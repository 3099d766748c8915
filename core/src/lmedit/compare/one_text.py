"""One edit as text for the terminal."""

from __future__ import annotations

from typing import Any


def one_text(result: dict[str, Any]) -> str:
    """Before and after side by side: the prompt, a paraphrase, a neighbour, the targets."""
    request, before, after = result["request"], result["before"], result["after"]
    prompts = {"prompt": request["prompt"].replace("{}", request["subject"])}
    prompts |= {kind: probe["prompt"] for kind, probe in before["probes"].items()}
    lines = []
    for kind, prompt in prompts.items():
        was = before if kind == "prompt" else before["probes"][kind]
        now = after if kind == "prompt" else after["probes"][kind]
        lines += [f"{kind}: {prompt}", f"  before  {_top(was)}", f"  after   {_top(now)}"]
    for which in ("target_new", "target_true"):
        if before[which] is not None:
            lines.append(f"P({request[which]}): {before[which]:.3f} -> {after[which]:.3f}")
    if result["survives"] is not None:
        left = f"{100 * result['survives']:.1f} %"
        lines.append(f"{left} of the edit survives rounding to {result['number_type']}")
    lines.append(f"{result['method']} took {result['seconds']:.2f} s")
    return "\n".join(lines)


def _top(look: dict[str, Any]) -> str:
    return ", ".join(f"{top['token'].strip() or repr(top['token'])} {top['p']:.3f}"
                     for top in look["top"])  # fmt: skip
