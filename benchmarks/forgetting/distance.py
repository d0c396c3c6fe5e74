"""Distance: between pictures in pairs, to the nearest real picture, and between two sets of pictures.

KID is torchmetrics' unbiased squared MMD with a cubic kernel, not over a network's features, which would have to be
downloaded and know no 32x32 flags, but over pixels averaged down to 8x8: 192 numbers for a picture. It sees colours and
layout; noise, grey and one picture a hundred times are far from a set of real ones. It is no KID of other papers.
"""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.kid import KernelInceptionDistance

from hotfix.shapes import Pictures
from hotfix.similarity import nearest

SUBSETS, SUBSET = 50, 100


class Pooled(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] as 8x8 thumbnails in [0, 1], flat."""

    def forward(self, pictures: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d((pictures + 1) / 2, 8).flatten(1)


def kid(drawn: Pictures, real: Pictures) -> float:
    """Kernel distance of two sets of pictures over 8x8 thumbnails; its subsets are always drawn alike."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        size = min(SUBSET, len(drawn), len(real))
        metric = KernelInceptionDistance(feature=Pooled(), subsets=SUBSETS, subset_size=size)
        metric.update(real, real=True)
        metric.update(drawn, real=False)
        return float(metric.compute()[0])


def to_nearest(drawn: Pictures, real: Pictures) -> float:
    """Mean RMSE in [0, 1] to the nearest real picture."""
    return apart(drawn, real[nearest(drawn, real)])


def apart(a: Pictures, b: Pictures) -> float:
    """Mean RMSE in [0, 1] of pictures in pairs."""
    return float((a - b).square().mean(dim=(1, 2, 3)).sqrt().mean()) / 2
