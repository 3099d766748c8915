"""Joint edits of blocks of experts: the values that arrive, statistics, memory, revert."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import torch

from lmedit import Request, build_options, load
from lmedit.pipeline import prepare
from lmedit.testing import Texts
from lmedit.tiny import tiny_model
from lmedit.trace import captured
from lmedit_memit.solving import Metric, joint_keys

if TYPE_CHECKING:
    from torch import Tensor

    from lmedit import Lm
    from lmedit.pipeline import Editor

H, D, EXPERTS = 16, 24, 4
FACTS = [
    Request(prompt="{} is in the city of", subject=subject, target_new=new)
    for subject, new in (("The old tower", "river"), ("The boat", "sea"), ("Nobody", "home"))
]
QUICK: dict[str, Any] = {"prefixes": [[3, 1]], "steps": 4, "samples": 400, "tolerance": None}


@cache
def mixtral() -> Lm:
    sizes = {"hidden_size": H, "intermediate_size": D, "num_hidden_layers": 3}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": EXPERTS}
    sizes |= {"max_position_embeddings": 128}
    return tiny_model("MixtralConfig", sizes, torch.float32)  # experts do not run in float64


def editor(lm: Lm, method: str, **given: Any) -> Editor:
    loaded = load(method)
    return prepare(loaded, lm, build_options(loaded.method, QUICK | given, lm), Texts())


def at_subject(lm: Lm, request: Request, layer: int) -> Tensor:
    """The output of block *layer* at the subject's last token."""
    ids, index = lm.subject_last(request.prompt, request.subject)
    with captured(lm.block(layer)) as box:
        lm.logits(lm.batch([ids[: index + 1]]))
    return box.output[0, index].double()


def test_exact_answers_arrive_in_the_stream_of_every_fact() -> None:
    """EMMET's values are exact, though each fact goes to two experts that others share."""
    lm = mixtral()
    found = editor(lm, "emmet", layer=1, damping=0.01, prefixes=[])
    before = [at_subject(lm, fact, 1) for fact in FACTS]
    update = found.compute_joint(FACTS)
    assert {site.index for site in update.deltas} <= set(range(EXPERTS))
    assert len(update.deltas) > 1
    assert update.notes["value at"] == "block"
    assert update.notes["residual left"] < 1e-6
    digest = lm.weights_digest()
    with found.applied(update):
        gained = [at_subject(lm, f, 1) - b for f, b in zip(FACTS, before, strict=True)]
    sizes = [float(each.norm()) for each in gained]
    assert sum(sizes) / len(sizes) == pytest.approx(update.notes["residual"], rel=1e-4)
    assert lm.weights_digest() == digest


@pytest.mark.parametrize("method", ["memit", "alphaedit"])
def test_several_layers_of_experts(method: str) -> None:
    lm = mixtral()
    share = {"threshold_share": 0.2} if method == "alphaedit" else {"damping": 0.01, "weight": 1.0}
    found = editor(lm, method, layers=[0, 1], remember=True, **share)
    location = found.locate(FACTS[0])
    assert all(site.index is not None for site in location.sites)
    assert set(location.evidence["routed to"]) == {"0", "1"}
    update = found.compute_joint(FACTS)
    assert update.notes["residual left"] < 0.9
    names = {f"{site.parameter.split('.')[2]}.{site.index}" for site in update.deltas}
    assert {name.removeprefix("keys.") for name in update.carry} == names
    digest = lm.weights_digest()
    with found.applied(update):
        more = found.compute_joint([FACTS[1]], [found.carry_of(update)])
    assert more.notes["facts"] == 1
    assert lm.weights_digest() == digest


def test_stacked_keys_are_measured_part_by_part() -> None:
    draw = torch.Generator().manual_seed(0)
    roots = [torch.randn(5, 5, generator=draw).double() for _ in range(2)]
    covers = [root @ root.T + torch.eye(5).double() for root in roots]
    K = torch.randn(10, 3, generator=draw).double()
    metric = Metric.of_parts(
        [Metric.of_factor(torch.linalg.cholesky(C), 2.0) for C in covers], [5, 5]
    )
    C = torch.block_diag(*covers)
    plain = torch.linalg.solve(2.0 * C + K @ K.T, K)
    torch.testing.assert_close(joint_keys(metric, K), plain)
    other = Metric.of_parts(
        [
            Metric.of_factor(torch.linalg.cholesky(covers[0]), 2.0),
            Metric.of_factor(torch.linalg.cholesky(covers[1]), 6.0),
        ],
        [5, 5],
    )
    weighed = torch.block_diag(2.0 * covers[0], 6.0 * covers[1])
    torch.testing.assert_close(joint_keys(other, K), torch.linalg.solve(weighed + K @ K.T, K))
