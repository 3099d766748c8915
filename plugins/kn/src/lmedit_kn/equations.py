"""Knowledge neurons (Dai et al. 2022, arXiv 2104.08696), as plain functions of tensors.

a (L, D) are a prompt's activations at its last token, one row for each of L layers; a neuron is a
layer and one of D places. P is the probability of the answer's token there.
"""

from __future__ import annotations

import torch
from torch import Tensor


def path(rule: str, m: int) -> tuple[Tensor, Tensor]:
    """The m points t in [0, 1] at which the gradient along t * a is taken, and their weights.

    `inclusive`: 0 to 1 with both ends (the released code); `right`: k / m for k = 1 ... m (the
    paper's equation 2); `midpoint`: (k - 1/2) / m, whose error falls with m squared; all these
    weigh every point 1 / m. `gauss`: Gauss and Legendre's points and weights, exact for
    polynomials in t of degree 2 m - 1. `lobatto`: Gauss and Lobatto's, with both ends, exact to
    degree 2 m - 3. In float64.
    """
    if rule == "gauss":
        k = torch.arange(1, m, dtype=torch.float64)
        x, w = _golub_welsch(k / (4 * k**2 - 1).sqrt())
        return (x + 1) / 2, w
    if rule == "lobatto":
        # Inside lie the points of the weight 1 - x^2, whose integral is 4/3.
        k = torch.arange(1, max(1, m - 2), dtype=torch.float64)
        x, w = _golub_welsch((k * (k + 2) / (2 * k + 1) / (2 * k + 3)).sqrt())
        ends = torch.ones(1, dtype=torch.float64)
        x, w = x[: m - 2], w[: m - 2]  # two points are the ends alone
        w = torch.cat([ends / m / (m - 1), w * 2 / 3 / (1 - x**2), ends / m / (m - 1)])
        return (torch.cat([-ends, x, ends]) + 1) / 2, w
    k = torch.arange(m, dtype=torch.float64)
    t = k / max(1, m - 1) if rule == "inclusive" else (k + (1 if rule == "right" else 0.5)) / m
    return t, torch.full_like(t, 1 / m)


def _golub_welsch(beside: Tensor) -> tuple[Tensor, Tensor]:
    """Points in [-1, 1], and weights of sum 1, of the polynomials of an even weight.

    *beside* (m - 1,) stands beside the diagonal of their recurrence (Golub and Welsch 1969).
    """
    x, vectors = torch.linalg.eigh(beside.diag(1) + beside.diag(-1))
    return x, vectors[0] ** 2


def attribution(a: Tensor, mean_gradient: Tensor) -> Tensor:
    """a * sum_k w_k dP/da at t_k a (equation 2, whose weights are 1/m), over a (..., D).

    *mean_gradient* is the weighted sum over the m points. Over a layer's neurons the
    attributions sum to P(a) - P(0) as m grows (completeness).
    """
    return a * mean_gradient


def threshold_of(
    scores: Tensor, adaptive: float | None, fixed: float | None, percentile: float | None
) -> float:
    """The attribution that a neuron must exceed, by the one criterion that is not None.

    *adaptive* is a share of the largest score, *percentile* counts over all layers and neurons.
    """
    if adaptive is not None:
        return adaptive * float(scores.max())
    if fixed is not None:
        return fixed
    if percentile is None:
        raise ValueError("one of adaptive, fixed and percentile must be given")
    return float(torch.quantile(scores.double().flatten(), percentile / 100))


def coarse(scores: Tensor, threshold: float) -> Tensor:
    """A mask (L, D) of the neurons that the coarse selection keeps: those above the threshold."""
    return scores > threshold


def shared_mask(chosen: Tensor, share: float) -> Tensor:
    """A mask of the neurons that the fine selection keeps: those of more than *share* of n prompts.

    *chosen* (n, L, D) holds each prompt's coarse selection.
    """
    return chosen.sum(0) > share * len(chosen)


def exchange(old: Tensor, new: Tensor, lambda_old: float, lambda_new: float) -> Tensor:
    """The gain of a neuron's value (H,): -lambda_1 e_old + lambda_2 sum e_new (section 5.1).

    *old* (H,) and *new* (T, H) are embeddings: of the present answer, of the new one's tokens.
    """
    return lambda_new * new.sum(0) - lambda_old * old


def covariance(E: Tensor) -> Tensor:
    """The covariance (H, H) of the embeddings E (n, H), in float64."""
    return torch.cov(E.T.double(), correction=0)


def level(d: Tensor, C: Tensor) -> Tensor:
    """*d* (H,) without the directions that most embeddings share, as long as before.

    d' ~ (C + tr(C)/H I)^-1 d, with C (H, H) the covariance of the embeddings. Words that are rare
    or frequent differ along a few large directions of C. Taking out a frequent word's embedding
    would otherwise raise every rare word more than the new answer.
    """
    C = C + C.trace() / len(C) * torch.eye(len(C), dtype=C.dtype, device=C.device)
    found = torch.linalg.solve(C, d.double())
    return (found * (d.double().norm() / found.norm().clamp(min=1e-30))).to(d)


def shorten(d: Tensor, longest: float) -> Tensor:
    """*d* (H,), scaled down to the length *longest* where it is longer."""
    return d * min(1.0, longest / float(d.norm())) if d.any() else d


def before_norm(d: Tensor, out: Tensor, gain: Tensor) -> Tensor:
    """The vector to add to *out* (H,) so that ``gain * out / rms(out)`` gains *d* (H,).

    To first order in d. The part of d along the norm's output cannot be reached: the norm fixes
    that length. Gains below a tenth of their mean size count as that tenth.
    """
    least = 0.1 * gain.abs().mean()
    size = torch.where(gain < 0, -1.0, 1.0) * gain.abs().clamp(min=least)
    return d / size * out.pow(2).mean().sqrt()


def before_rest(d: Tensor, J: Tensor, ridge: float = 0.05) -> Tensor:
    """The vector v to add before the rest of a block so that its output gains *d* (H,).

    v = (J^T J + r I)^-1 J^T d, to first order; J (H, H) is the derivative of the rest. r is
    *ridge* squared times the mean square of J's singular values. Without r, directions that hardly
    arrive would be blown up. Directions that do not arrive at all get nothing.
    """
    J = J.double()
    r = ridge**2 * J.pow(2).sum() / len(J)
    A = J.T @ J + r * torch.eye(J.shape[1], dtype=J.dtype, device=J.device)
    return torch.linalg.solve(A, J.T @ d.double()).to(d)
