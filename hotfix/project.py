r"""Gradient surgery: the forget gradient g_f yields to the retain gradient g_r, never the other way round."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hotfix.shapes import Flat


def project(g: Flat, onto: Flat) -> Flat:
    r"""Take out of g the part that opposes `onto`; g itself where they agree.

        g - min(0, ⟨g, r⟩) / ‖r‖² · r

    Flat over all parameters: the first-order change of the retain loss is then never positive. `onto` = 0 changes
    nothing.

    Args:
        g: a gradient, shape (P,).
        onto: the gradient that must not be opposed, shape (P,).

    Source: Yu et al. 2020, arXiv:2001.06782, Algorithm 1, one side only (as in EUPMU, arXiv:2510.22124).
    """
    c = (g @ onto).clamp(max=0) / (onto @ onto).clamp_min(torch.finfo(onto.dtype).tiny)
    return g - c * onto


def per_tensor(g: Flat, onto: Flat, sizes: Sequence[int]) -> Flat:
    """`project` for every tensor by itself. Takes out more than the flat rule: many small conflicts, not one sum.

    Args:
        g: a gradient, shape (P,).
        onto: the gradient that must not be opposed, shape (P,).
        sizes: numbers of elements of the tensors that P is made of, in order; they add up to P.

    Source: the scope of GDR-GMA and DoCo (docs/method.md).
    """
    pairs = zip(g.split(list(sizes)), onto.split(list(sizes)), strict=True)
    return torch.cat([project(part, onto=other) for part, other in pairs])


def orthogonal(g: Flat, to: Tensor) -> Flat:
    """Take out of g everything in the span of several retain gradients, agreeing or not.

    Args:
        g: a gradient, shape (P,).
        to: retain gradients, shape (K, P); zero rows are no direction.

    Source: OrthoGrad, arXiv:2503.02312.
    """
    used = to[to.norm(dim=1) > 0]
    if not len(used):
        return g
    # Unit rows first: QR of gradients of very different size would lose the small ones to rounding.
    Q = torch.linalg.qr((used / used.norm(dim=1, keepdim=True)).T).Q
    return g - Q @ (Q.T @ g)


def leading(x: Tensor, share: float) -> Tensor:
    r"""The fewest orthonormal directions that hold a share of the energy of some inputs, shape (K, D).

        the first K rows of Vᵀ,  x = W diag(σ) Vᵀ,  with the smallest K such that Σ_{i≤K} σ_i² ≥ share · Σ σ_i²

    Not centred: the mean is a direction like any other, and a layer acts on it. With share = 1 they span the inputs.

    Args:
        x: inputs, shape (N, D); where all are zero, K = 0.
        share: in (0, 1].

    Source: GPM, Saha et al. 2021, arXiv:2103.09762. PGU's code (arXiv:2312.04095) adds up σ_i instead: more directions
        for the same share.
    """
    _, sigma, V = torch.linalg.svd(x.double().cpu(), full_matrices=False)
    energy = sigma.square().cumsum(dim=0)
    used = int((energy < share * energy[-1]).sum()) + 1 if bool(sigma.any()) else 0
    return V[:used].to(x.device, x.dtype)


def without(rows: Tensor, directions: Tensor) -> Tensor:
    r"""Take orthonormal directions U out of every row: rows - rows Uᵀ U.

    Of the factor A of a patch: then ΔW x = B A x = 0 for every x in the span of U, whatever B is.

    Args:
        rows: shape (R, D).
        directions: orthonormal rows, shape (K, D), as `leading` gives them.

    Source: PGU, arXiv:2312.04095, and GPM, arXiv:2103.09762, project a weight's gradient so; in a patch it is A, since
        the rows of B A lie in the span of those of A.
    """
    return rows - rows @ directions.T @ directions


def hold(step: Flat, onto: Flat) -> Flat:
    r"""The same for a finished parameter step, which moves *against* its gradient: keep ⟨step, r⟩ ≤ 0.

    A projected gradient passes through Adam's per-parameter scaling and comes out opposed again; projecting the step
    itself is what makes the rule true of the realised update (docs/method.md).
    """
    return -project(-step, onto)


def cosine(g: Flat, r: Flat) -> Tensor:
    """Cosine of the angle between two gradients, a scalar in [-1, 1]; 0 where either is zero."""
    return torch.nn.functional.cosine_similarity(g, r, dim=0)
