"""What looks on while a model trains."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from batches import Batch


class Watch(Protocol):
    """Who looks on while a model trains and changes nothing: neither weights nor gradients nor random streams."""

    keep: dict[str, Any]  # tensors and numbers that belong to the state of a resumable run

    def begin(self, epoch: int, epochs: int) -> None: ...

    def before(self, model: nn.Module, batch: Batch) -> None:
        """Ahead of the forward pass of a step."""

    def after(self, batch: Batch, logits: Tensor) -> None:
        """With the logits (float32 [B, K], detached) of the step's own forward pass, before its update."""

    def end(self) -> None:
        """After a pass, of which each of several processes saw a part."""
