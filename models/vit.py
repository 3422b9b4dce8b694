"""A vision transformer for small data sets: shifted patch tokenisation and locality self-attention.

Lee, Lee and Song, arXiv:2112.13492, eq. 3-5 (tokens) and 6-7 (attention). Sizes are those of the published class-wise
unlearning experiments: patches of 4 pixels, width 512, 4 blocks of 6 heads of 64, hidden width 256, dropout 0.1, a class
token. Shapes: B images, T tokens (the class token and P patches), D = 512 wide, H heads of E = 64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import Classifier, Normalize

PATCH, WIDTH, DEPTH, HEADS, HEAD_WIDTH, HIDDEN, DROPOUT = 4, 512, 4, 6, 64, 256, 0.1


class ShiftedPatches(nn.Module):
    """Tokens of patches that see beyond their border: float [B, 3, S, S] becomes [B, (S / patch)^2, width].

    The image and four copies of it, moved by half a patch along the diagonals, are cut into patches together. As in the
    paper; a rewrite in wide use moves them by one pixel along the axes.
    """

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(5 * 3 * patch**2)
        self.project = nn.Linear(5 * 3 * patch**2, width)

    def forward(self, x: Tensor) -> Tensor:
        half, size = self.patch // 2, x.shape[-1]
        wide = F.pad(x, (half,) * 4)  # the window at (half, half) is the image itself
        ends = [(half, half), (0, 0), (0, 2 * half), (2 * half, 0), (2 * half, 2 * half)]
        views = torch.cat([wide[..., top : top + size, left : left + size] for top, left in ends], 1)
        patches = views.unfold(2, self.patch, self.patch).unfold(3, self.patch, self.patch)  # [B, 15, rows, columns, 4, 4]
        return self.project(self.norm(patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)))


class LocalAttention(nn.Module):
    """Self-attention with a learned temperature, in which no token attends to itself: [B, T, D] to [B, T, D]."""

    def __init__(self, width: int, heads: int, head_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.norm = nn.LayerNorm(width)
        self.log_scale = nn.Parameter(torch.empty(1))  # of the products of queries and keys, 1 / temperature
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width)
        self.drop_weights, self.drop = nn.Dropout(dropout), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, self.head_width))
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # [B, H, T, E] each
        own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        products = (q @ k.transpose(-1, -2) * self.log_scale.exp()).masked_fill(own, -torch.inf)
        found = self.drop_weights(products.softmax(-1)) @ v
        return self.drop(self.out(found.transpose(1, 2).flatten(2)))

    def reset_parameters(self) -> None:
        """The temperature starts at the square root of a head's width, as in plain attention."""
        nn.init.constant_(self.log_scale, -0.5 * torch.tensor(float(self.head_width)).log().item())


class Block(nn.Module):
    """Attention and a perceptron of one hidden layer, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, width: int, heads: int, head_width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = LocalAttention(width, heads, head_width, dropout)
        self.feed = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout),
                                  nn.Linear(hidden, width), nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x) + x
        return self.feed(x) + x


class ViT(Classifier):
    """Tokens with learned positions, blocks, the class token's LayerNorm (the features), a linear head.

    Args:
        image_size: pixels a side, on which the number of positions depends; a multiple of the patch.
    """

    def __init__(self, num_classes: int, normalize: Normalize, image_size: int, *, width: int = WIDTH, depth: int = DEPTH,
                 heads: int = HEADS, head_width: int = HEAD_WIDTH, hidden: int = HIDDEN, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.normalize = normalize
        self.patches = ShiftedPatches(PATCH, width)
        self.token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + (image_size // PATCH) ** 2, width))
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, head_width, hidden, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)

    def features_of(self, x: Tensor) -> Tensor:
        x = self.patches(self.normalize(x))
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.norm(self.blocks(self.drop(x + self.positions))[:, 0])

    def classify(self, features: Tensor) -> Tensor:
        return self.fc(features)

    def reset_parameters(self) -> None:
        """Class token and positions from N(0, 1), as in the source; linear layers and norms are torch's default."""
        nn.init.normal_(self.token)
        nn.init.normal_(self.positions)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm, LocalAttention)):
                module.reset_parameters()
