"""The pieces of the page as HTML. The server and notebooks use the same; every text is escaped."""

from __future__ import annotations

from difflib import SequenceMatcher
from html import escape
from typing import TYPE_CHECKING, Any

from lmedit.actions.verdict import SENTENCE_END

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lmedit_play.sessions import KeptEdit

SHORT = 12
SHADES = 10
"""How many shades a heat map has beside the lightest one."""
BLANK = "\u2423"
"""The sign for a blank in a token."""


def show_blanks(token: str) -> str:
    """*token* with its blanks and line ends made visible."""
    return escape(token.replace("\n", "\u21b5").replace(" ", BLANK)) or "&nbsp;"


def chips(tokens: Sequence[str], start: int, end: int) -> str:
    """The tokens of a prompt; those of the subject [start, end) are marked, its last one most."""
    items = []
    for i, token in enumerate(tokens):
        kind = "last" if i == end - 1 else "subject" if start <= i < end else ""
        label = {"last": "the subject's last token", "subject": "subject"}.get(kind, "")
        told = f'<span class="unseen"> ({label})</span>' if label else ""
        items.append(f'<li class="{kind}"><code>{show_blanks(token)}</code>{told}</li>')
    return f'<ol class="chips" aria-label="tokens of the prompt">{"".join(items)}</ol>'


def bars(top: Sequence[Mapping[str, Any]], title: str) -> str:
    """The most probable next tokens with their probabilities, as a table with bars."""
    rows = []
    for each in top:
        share = max(0.0, min(1.0, each["p"]))
        bar = (
            '<svg class="bar" width="100%" height="10" aria-hidden="true">'
            f'<rect width="{100 * share:.1f}%" height="10"></rect></svg>'
        )
        token = f'<th scope="row"><code>{show_blanks(each["token"])}</code></th>'
        rows.append(f"<tr>{token}<td>{bar}</td><td>{each['p']:.3f}</td></tr>")
    head = f'<caption class="unseen">{escape(title)}</caption>'
    return f'<table class="bars">{head}{"".join(rows)}</table>'


def mark_differences(before: str, after: str) -> tuple[str, str]:
    """Both texts, with the words that only one of them has in ``del`` and ``ins``.

    The answers, up to the end of the first sentence, are compared with each other, and the rests
    are. So an answer that comes again in the other text does not count as the same.
    """
    one, two = _cut(before), _cut(after)
    parts = [_mark_part(*pair) for pair in zip(one, two, strict=True)]
    left, right = (" ".join(filter(None, column)) for column in zip(*parts, strict=True))
    return left, right


def _cut(text: str) -> tuple[str, str]:
    """*text* up to the end of its first sentence, and the rest."""
    text = " ".join(text.split())
    end = SENTENCE_END.search(text)
    return (text[: end.end()], text[end.end() :]) if end else (text, "")


def _mark_part(before: str, after: str) -> tuple[str, str]:
    one, two = before.split(), after.split()
    left, right = [], []
    for kind, a, b, c, d in SequenceMatcher(None, one, two, autojunk=False).get_opcodes():
        was, now = escape(" ".join(one[a:b])), escape(" ".join(two[c:d]))
        left.append(was if kind == "equal" or not was else f"<del>{was}</del>")
        right.append(now if kind == "equal" or not now else f"<ins>{now}</ins>")
    return " ".join(filter(None, left)), " ".join(filter(None, right))


def view(look: Mapping[str, Any]) -> str:
    """One prompt in two columns: *look* has `kind`, `prompt`, `before`, `after` and `kl`."""
    was, now = look["before"], look["after"]
    texts = mark_differences(was["writes"], now["writes"])
    columns = [
        _column(title, str(look["prompt"]), each["top"], text and f"{text} \u2026")
        for title, each, text in zip(("Before", "After"), (was, now), texts, strict=True)
    ]
    same = was["top"][0]["token"] == now["top"][0]["token"]
    told = "the same top token" if same else "another top token"
    return (
        f'<article class="view"><h3><span class="kind">{escape(str(look["kind"]))}</span> '
        f'{escape(look["prompt"])}</h3><div class="two">{"".join(columns)}</div>'
        f'<p class="small">{told}; KL of the next token {look["kl"]:.2g} nats</p></article>'
    )


def _column(title: str, prompt: str, top: Sequence[Mapping[str, Any]], text: str) -> str:
    """One model's answer: *text* is HTML already."""
    told = bars(top, f"{title}: next tokens after {prompt}")
    writes = text or "<i>nothing</i>"
    return f'<div><h4>{title}</h4><p class="writes">{writes}</p>{told}</div>'


def views(looks: Sequence[Mapping[str, Any]], told: Sequence[str] = ()) -> str:
    """All prompts, with the lines of *told* in front."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in told)
    front = f'<ul class="told">{lines}</ul>' if lines else ""
    return front + "".join(map(view, looks))


def heat(title: str, trace: Mapping[str, Any], rows: Mapping[int, Sequence[float]]) -> str:
    """P(answer) by token (row) and layer (column); *rows* has those that are known.

    *trace* has `tokens`, `subject` and `layers`, those that are edited.
    """
    count = len(next(iter(rows.values()), ()))
    known = [value for row in rows.values() for value in row]
    scale = (min(known), max(known)) if known else (0.0, 1.0)
    marks = [layer in trace["layers"] for layer in range(count)]
    heads = [
        f'<th scope="col"{CHOSEN if mark else ""}>{layer}</th>' for layer, mark in enumerate(marks)
    ]
    lines = []
    for i, token in enumerate(trace["tokens"]):
        inside = ' class="subject"' if trace["subject"][0] <= i < trace["subject"][1] else ""
        cells = [
            _cell(f"{title}: token {token.strip()!r}, layer {layer}", p, scale, mark=mark)
            for layer, (p, mark) in enumerate(zip(rows.get(i, ()), marks, strict=False))
        ]
        row = "".join(cells) or f'<td class="unknown" colspan="{max(1, count)}"></td>'
        lines.append(
            f'<tr><th scope="row"{inside}><code>{show_blanks(token)}</code></th>{row}</tr>'
        )
    head = f'<tr><th scope="col">layer</th>{"".join(heads)}</tr>'
    name = escape(title)
    table = f'<table class="heat" role="grid" aria-label="{name}">{head}{"".join(lines)}</table>'
    told = f'<p class="small">P from {scale[0]:.3f} (faint) to {scale[1]:.3f} (strong)</p>'
    return f'<figure><figcaption>{name}</figcaption><div class="wide">{table}</div>{told}</figure>'


CHOSEN = ' class="chosen" title="this layer is edited"'


def _cell(place: str, p: float, scale: tuple[float, float], *, mark: bool) -> str:
    low, high = scale
    shade = round(SHADES * (p - low) / (high - low)) if high > low else 0
    kind = f"h{shade}{' chosen' if mark else ''}"
    says = escape(f"{place}: P = {p:.4f}")
    return f'<td class="{kind}" tabindex="-1" aria-label="{says}" data-says="{says}"></td>'


def stack(edits: Sequence[KeptEdit], base: str) -> str:
    """The edits of a session as a list with switches; *base* is the digest of the model."""
    if not edits:
        return '<p class="small">No edit yet. The model is as it was loaded.</p>'
    items = []
    for each in edits:
        request, short = each.request, each.id[:SHORT]
        prompt = str(request.get("prompt", "")).replace("{}", str(request.get("subject") or "{}"))
        fact = f"{prompt} \u2192 {request.get('target_new', '')}" if prompt else "an adapter"
        items.append(
            f'<li><label><input type="checkbox" id="on-{short}" data-switch="{each.id}"'
            f"{' checked' if each.on else ''}> {escape(fact)}</label> "
            f'<span class="small">{escape(str(each.facts.get("method")))} '
            f'<code title="{each.id}">{short}</code></span> '
            f'<button type="button" data-remove="{each.id}" id="out-{short}">remove'
            f'<span class="unseen"> {escape(fact)}</span></button></li>'
        )
    on = sum(each.on for each in edits)
    state = f"{on} of {len(edits)} edits are on, beside the weights of <code>{base[:SHORT]}</code>."
    return f'<ul class="stack">{"".join(items)}</ul><p class="small" id="state">{state}</p>'


def notes(lines: Sequence[str]) -> str:
    """Notes for the user as a list."""
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def code(title: str, text: str) -> str:
    """A block of *text* to copy."""
    return f'<h3>{escape(title)}</h3><pre tabindex="0"><code>{escape(text)}</code></pre>'
