"""Damaged files, the same every time: bytes changed, and content changed under a right checksum."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    Tensors = dict[str, torch.Tensor]

OTHERS: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    "",
    "a",
    "\ud800",
    "../../x",
    "\0",
    [],
    {},
    [[]],
    [None],
    {"": 0},
    "9" * 40,
    float("nan"),
    ["x"] * 3,
)
"""What may stand where something else should."""
KINDS = ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X", "")


def bytes_changed(data: bytes, draw: Random) -> bytes:
    """*data* with bytes flipped, cut away, put in, doubled, or its end gone or longer."""
    damaged = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(damaged) or 1)
        kind = draw.randrange(6)
        if kind == 0:
            damaged[place : place + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            del damaged[place:]
        elif kind == 2:
            damaged += draw.randbytes(draw.choice([1, 8, 4000]))
        elif kind == 3:
            damaged[place:place] = draw.choice([b'"', b"{", b"[" * 3000, b"\0", b"\xff", b"1e999"])
        elif kind == 4:
            del damaged[place : place + draw.choice([1, 7, 64])]
        else:
            damaged[place : place + 8] = draw.choice([b"\xff" * 8, bytes(8), damaged[:8]])
    return bytes(damaged)


def value_changed(value: Any, draw: Random) -> Any:
    """JSON *value* with one part, however deep, gone, renamed, doubled, or of another kind."""
    changed = copy.deepcopy(value)
    places = list(_places(changed))
    if not places:
        return draw.choice(OTHERS)
    holder, key = draw.choice(places)
    kind = draw.randrange(4)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice([f"{key}x", "", "id", "sites"])] = holder.pop(key)
    elif kind == 1:
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = copy.deepcopy(draw.choice(OTHERS))
    return changed


def _places(value: Any) -> Any:
    """Every container in *value* with every key in it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def header_changed(data: bytes, draw: Random) -> bytes:
    """A safetensors file whose header says otherwise: sizes, shapes, offsets, kinds, names."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = draw.choice([key for key in header if key != "__metadata__"])
    kind = draw.randrange(7)
    if kind == 0:
        header[name]["dtype"] = draw.choice(KINDS)
    elif kind == 1:
        header[name]["shape"] = draw.choice([[], [-1, 2], [2**62, 2**62], [2**40], [1.5], [0, 9]])
    elif kind == 2:
        header[name]["data_offsets"] = draw.choice(
            [[0, 2**63], [8, 0], [-1, 4], [0], [0, len(body)]]
        )
    elif kind == 3:
        header[draw.choice(["0.right", "7.left", "", "é"])] = header.pop(name)
    elif kind == 4:
        header["more"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(body), len(body) + 4]}
        body += bytes(4)
    else:
        header = value_changed(header, draw)
    text = json.dumps(header).encode()
    shown = draw.choice([len(text)] * 8 + [2**62, 2**31, 0])
    return shown.to_bytes(8, "little") + text + body


def content_changed(
    tensors: Tensors, facts: dict[str, Any], draw: Random
) -> tuple[Tensors, dict[str, Any]]:
    """A patch's content with one thing wrong, to be saved under a right checksum."""
    kind = draw.randrange(8)
    name = draw.choice(sorted(tensors))
    if kind < 3:
        return tensors, value_changed(facts, draw)
    if kind == 3:
        other = {
            old if old != name else draw.choice(["9.left", "x", ""]): t
            for old, t in tensors.items()
        }
        return other, facts
    if kind == 4:
        return {key: t for key, t in tensors.items() if key != name}, facts
    if kind == 5:
        return tensors | {draw.choice(["more", "5.values"]): torch.zeros(300, 300)}, facts
    return tensors | {name: _wrong(tensors[name], draw)}, facts


def _wrong(tensor: torch.Tensor, draw: Random) -> torch.Tensor:
    """*tensor* of another shape, of no numbers, not finite, or far too large."""
    spoilt = tensor.clone(memory_format=torch.contiguous_format)
    spoilt.view(-1)[draw.randrange(spoilt.numel())] = draw.choice([float("nan"), float("inf")])
    makers: list[Callable[[], torch.Tensor]] = [
        lambda: spoilt,
        lambda: torch.full_like(tensor, 1e300 if tensor.dtype == torch.float64 else 3e38),
        lambda: tensor.reshape(-1),
        lambda: tensor[None],
        lambda: tensor[:0],
        lambda: tensor.new_zeros(()),
        lambda: tensor.T,
        lambda: tensor.repeat(1, 9),
        lambda: tensor.repeat(9, 1),
        lambda: tensor.new_zeros(2, 50_000),
        lambda: tensor.to(draw.choice([torch.int64, torch.bool, torch.complex64, torch.uint16])),
        lambda: tensor.to(torch.float8_e4m3fn),
    ]
    return draw.choice(makers)()
