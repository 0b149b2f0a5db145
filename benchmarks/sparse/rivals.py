"""The layers that are compared: dense, block patterns, and every other way to a layer with few weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.sparse.block import BlockPattern, Layout
from offramp.sparse.convolution import SparseConv2d
from offramp.sparse.layers import SparseLayer, SparseLinear

__all__ = ["DENSE", "MASKED", "Candidate", "convolutions", "linears", "multiplied_in"]

LAYOUTS: tuple[Layout, ...] = ("contiguous", "strided")
DENSE, MASKED = "dense", "masked"


@dataclass(frozen=True)
class Candidate:
    """One layer of the comparison.

    Attributes:
        name: Its row.
        layer: What runs.
        density: The kept fraction.
        weights: The values that have to be read and multiplied, zeros left out where they could be.
        ours: Whether it is a block pattern with K = 1, for which the bars are.
        slow: Whether it takes far longer than the dense layer, so that few rounds must do.
        torch_only: Whether ONNX has no such operator.
        most_batch: The largest batch that it is given: more would take gigabytes.
        trains: Whether it takes part in training.
    """

    name: str
    layer: nn.Module
    density: Fraction
    weights: int
    ours: bool = False
    slow: bool = False
    torch_only: bool = False
    most_batch: int = 1 << 30
    trains: bool = True


class Masked(nn.Module):
    """A dense layer whose weight is multiplied by a 0/1 mask at every pass: how masks are trained.

    Args:
        layer: The dense layer; a convolution has padding 1.
        mask: What its weight is multiplied by, of the weight's shape.
    """

    mask: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, mask: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Maps what the dense layer maps."""
        weight = self.weight * self.mask
        return F.linear(x, weight, self.bias) if weight.dim() == 2 else F.conv2d(x, weight, self.bias, padding=1)


class Compressed(nn.Module):
    """A linear layer on a CSR or BSR weight, in the order of operands that is faster (weight @ x.T)."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias  # plain attributes: nothing here is trained

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_features) to (N, out_features)."""
        return (self.weight @ x.T).T + self.bias


def linears(quick: bool = False) -> list[Candidate]:
    """Linear layers 4096→4096, the dense one first.

    Args:
        quick: Small ones, one density, one layout: exporting them all takes most of the time.
    """
    width, densities, fine, tile = (64, [4], 32, 4) if quick else (4096, [4, 16], 256, 64)
    found = [Candidate(DENSE, nn.Linear(width, width), Fraction(1), width * width)]
    for q in densities:
        rho, kept = Fraction(1, q), width * width // q
        for layout in LAYOUTS[:1] if quick else LAYOUTS:
            layer = SparseLinear(width, width, rho, layout=layout)
            found.append(Candidate(f"block 1/{q} {layout}", layer, rho, kept, ours=True))
        layer = _block(width, 2, 2 * q)
        found.append(Candidate(f"block 2/{2 * q}", layer, rho, kept))
        layer = _block(width, fine // q, fine)
        found.append(Candidate(f"block {fine // q}/{fine}", layer, rho, kept, slow=True))
        if width > fine:
            layer = _block(width, width // q, width)
            name = f"finest {width // q}/{width}"
            found.append(
                Candidate(name, layer, rho, kept, slow=True, torch_only=True, most_batch=16, trains=False)
            )
        layer = SparseLinear(width, width, rho, pattern="structured")
        found.append(Candidate(f"structured 1/{q}", layer, rho, kept, slow=True, trains=q == densities[0]))
        tiled = _block(width, 1, q)
        bias = torch.randn(width)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says at first use that compressed tensors are in beta
            csr = layer.dense_weight().detach().to_sparse_csr()
            bsr = tiled.dense_weight().detach().to_sparse_bsr((tile, tile))
        for name, weight in ((f"torch CSR 1/{q}", csr), (f"torch BSR {tile} 1/{q}", bsr)):
            found.append(
                Candidate(
                    name,
                    Compressed(weight, bias),
                    rho,
                    kept,
                    slow=True,
                    torch_only=True,
                    most_batch=64,
                    trains=False,
                )
            )
    found.append(_masked(nn.Linear(width, width), _block(width, 1, densities[0])))
    return found


def convolutions(quick: bool = False) -> list[Candidate]:
    """3x3 convolutions 256→256 with padding 1, the dense one first.

    Args:
        quick: Small ones, one density, one layout: exporting them all takes most of the time.
    """
    channels, kernel, densities, fine = (32, 3, [4], 16) if quick else (256, 3, [4, 8], 64)
    dense = nn.Conv2d(channels, channels, kernel, padding=1)
    found = [Candidate(DENSE, dense, Fraction(1), dense.weight.numel())]
    for q in densities:
        rho = Fraction(1, q)
        for layout in LAYOUTS[:1] if quick else LAYOUTS:
            layer = SparseConv2d(channels, channels, kernel, rho, padding=1, layout=layout)
            found.append(Candidate(f"block 1/{q} {layout}", layer, rho, layer.weight.numel(), ours=True))
        grouped = nn.Conv2d(channels, channels, kernel, padding=1, groups=q)
        found.append(Candidate(f"grouped, {q} groups", grouped, rho, grouped.weight.numel()))
        for joined, blocks in ((2, 2 * q), (fine // q, fine)):
            pattern = BlockPattern(channels, channels, joined, blocks)
            layer = SparseConv2d(channels, channels, kernel, rho, padding=1, pattern=pattern)
            name = f"block {joined}/{blocks}"
            found.append(Candidate(name, layer, rho, layer.weight.numel(), slow=blocks == fine))
        layer = SparseConv2d(channels, channels, kernel, rho, padding=1, pattern="structured")
        first = q == densities[0]
        found.append(Candidate(f"structured 1/{q}", layer, rho, layer.weight.numel(), trains=first))
    like = SparseConv2d(channels, channels, kernel, Fraction(1, densities[0]), padding=1)
    found.append(_masked(nn.Conv2d(channels, channels, kernel, padding=1), like))
    return found


def _block(width: int, joined: int, blocks: int) -> SparseLinear:
    pattern = BlockPattern(width, width, joined, blocks)
    return SparseLinear(width, width, pattern.density, pattern=pattern)


def _masked(layer: nn.Linear | nn.Conv2d, like: SparseLayer) -> Candidate:
    mask = (like.dense_weight() != 0).detach().to(layer.weight.dtype)
    return Candidate(MASKED, Masked(layer, mask), like.pattern.density, layer.weight.numel())


def multiplied_in(candidate: Candidate) -> Candidate:
    """A candidate as it runs after training: of a masked layer there remains a dense one that holds zeros.

    Args:
        candidate: Any.
    """
    layer = candidate.layer
    if not isinstance(layer, Masked):
        return candidate
    n_right, n_left = layer.weight.shape[:2]
    dense = nn.Linear(n_left, n_right) if layer.weight.dim() == 2 else nn.Conv2d(n_left, n_right, 3, padding=1)
    with torch.no_grad():
        dense.weight.copy_(layer.weight * layer.mask)
    return replace(candidate, layer=dense)
