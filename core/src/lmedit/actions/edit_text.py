"""One edit as text for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def edit_text(result: dict[str, Any]) -> str:
    """The model before and after, the measurements, and the verdict, as text."""
    request, before, after = result["request"], result["before"], result["after"]
    prompts = {"prompt": request["prompt"].replace("{}", request["subject"] or "{}")}
    prompts |= {kind: probe["prompt"] for kind, probe in before["probes"].items()}
    lines = []
    for kind, prompt in prompts.items():
        was = before if kind == "prompt" else before["probes"][kind]
        now = after if kind == "prompt" else after["probes"][kind]
        lines += [f"{kind}: {prompt}", f"  before  {_top(was)}", f"  after   {_top(now)}"]
    lines += result["remarks"]
    lines += [f"writes before: {before['writes']}", f"writes after:  {after['writes']}"]
    lines += measured_lines(request, result)
    lines += [*_neighbours(before["probes"], after["probes"])]
    lines.append(f"{result['method']} computed the edit in {result['seconds']:.2f} s")
    lines.append(f"verdict: {verdict_text(result)}")
    return "\n".join(lines)


MEANING = {
    "took": "the model now writes the whole target",
    "took only under teacher forcing": "each target token is the top one after the target's own "
    "earlier tokens, but the model does not write the target by itself",
    "did not take": "the model does not write the target",
}
"""The meaning of each verdict."""


def verdict_text(measured: Mapping[str, Any]) -> str:
    """The verdict and its meaning in words."""
    verdict = str(measured["verdict"])
    return f"{verdict} ({MEANING[verdict]})" if verdict in MEANING else verdict


def measured_lines(request: Mapping[str, Any], measured: Mapping[str, Any]) -> list[str]:
    """The answers' probabilities before and after, the perplexity, and the surviving share.

    Missing measurements are left out. P is the joint probability of the target's tokens. If there
    are several tokens, their geometric mean follows, called per token.
    """
    before, after = measured["before"], measured["after"]
    lines = []
    for which in ("target_new", "target_true"):
        if before.get(which) is None or after.get(which) is None:
            continue
        line = f"P({request.get(which)}): {before[which]:.3f} -> {after[which]:.3f}"
        was, now = (look.get(f"{which}_per_token") for look in (before, after))
        if was is not None and now is not None and not _same(was, before[which]):
            line += f" (per token: {was:.3f} -> {now:.3f})"
        lines.append(line)
    if before.get("perplexity") is not None and after.get("perplexity") is not None:
        text = f"perplexity {before['perplexity']:.1f} -> {after['perplexity']:.1f}"
        lines.append(f"{text} on {measured.get('measured_on')}")
    if measured.get("survives") is not None:
        left = f"{100 * measured['survives']:.1f} %"
        lines.append(f"{left} of the edit survives rounding to {measured.get('number_type')}")
    return lines


def _same(one: float, other: float) -> bool:
    """Whether two probabilities are equal up to rounding: then the target has one token."""
    return abs(one - other) <= 1e-9 * max(one, other)


def _neighbours(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """How many neighbours, and other facts of the subject, keep their top token."""
    lines = []
    for kind, name in (("neighbour", "neighbours"), ("another fact", "other facts")):
        kinds = [each for each in before if each.startswith(kind)]
        kept = sum(before[k]["top"][0]["token"] == after[k]["top"][0]["token"] for k in kinds)
        if kinds:
            lines.append(f"{name}: {kept} of {len(kinds)} keep their top token")
    return lines


def _top(look: dict[str, Any]) -> str:
    return ", ".join(
        f"{top['token'].strip() or repr(top['token'])} {top['p']:.3f}" for top in look["top"]
    )
