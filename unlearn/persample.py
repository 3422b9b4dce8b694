"""Gradients of single examples, and what is built on them, without ever holding the gradients of a whole set.

G float [n, D] is the matrix whose row i is the gradient of -log p_y(x_i), all D parameters of the model in the order of
``named_parameters``, flattened; with ``free`` (bool [D]) its other columns are 0. Everything here is taken in eval mode, so
that an example's gradient is its own, and in full float32 also where training may use less. Shapes: B examples, K classes,
n examples in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.func import functional_call, vjp, vmap

from dataset import Batch, Loader
from models.modes import measuring
from trainer import loss_slope
from utils import Mask

Values = dict[str, Tensor]  # parameter name -> tensor of the parameter's shape
# from logits [..., K] and labels [...] the derivatives by the logits, [..., K] each, whose squared gradients are added
Rows = Callable[[Tensor, Tensor], Iterator[Tensor]]
COLUMNS = 8192  # of G in one float32 product of the Gram matrix: rounding stays that of short sums
STRIP = 64  # rows of G in a strip of its Gram matrix
COPIES = 6  # of an example's gradients and activations that are alive at the peak of a chunk, about
CHUNK = 256  # examples at most: they are groups of one convolution
# layers whose output is linear in their parameters: a directional derivative by these is the layer itself, at the direction
LINEAR = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, nn.LayerNorm, nn.GroupNorm)


def true_label(logits: Tensor, y: Tensor) -> Iterator[Tensor]:
    """d -log p_y / d logits: the gradient of the loss, or of the likelihood but for its sign."""
    yield loss_slope(logits, y)


def every_label(logits: Tensor, y: Tensor) -> Iterator[Tensor]:
    """d -log p_c / d logits times sqrt(p_c) for every class c: the squares add up to the expectation over the labels.

    For a batch the weight is the mean probability of the class, as the published code has it.
    """
    p = logits.softmax(-1)
    for c in range(logits.shape[-1]):
        yield p[..., c].mean().sqrt() * loss_slope(logits, torch.full_like(y, c))


def squared(model: nn.Module, batches: Iterable[Batch], rows: Rows = true_label, budget: int | None = None) -> Values:
    """Mean over the examples of the sum over ``rows`` of squared per-example gradients; float64, any batch size alike.

    With ``true_label`` it is the diagonal of the empirical Fisher matrix, with ``every_label`` of the Fisher matrix.

    Args:
        budget: bytes for the gradients of the examples that are held at a time; a part of what is free if None.
    """
    params, buffers = _state(model)
    totals, count = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in params.items()}, 0

    def squares(x: Tensor, y: Tensor) -> Values:
        logits, pull = vjp(lambda p: functional_call(model, (p, buffers), (x[None],))[0], params)
        found: Values = {}
        for row in rows(logits, y):
            for name, g in pull(row)[0].items():
                found[name] = g.square() if name not in found else found[name] + g.square()
        return found

    with measuring(model):
        for x, y in _chunks(model, batches, params, budget):
            count += len(y)
            for name, part in vmap(squares)(x, y).items():
                totals[name] += part.sum(0)
    return {name: total / max(1, count) for name, total in totals.items()}


def squared_means(model: nn.Module, batches: Iterable[Batch], rows: Rows = true_label) -> Values:
    """Mean over the batches of squared gradients of the batch means, float64: the published stand-in for ``squared``.

    It depends on the batches, and is smaller by about the batch size where the gradients of examples point all ways.
    """
    params = dict(model.named_parameters())
    totals, count = [torch.zeros_like(p, dtype=torch.float64) for p in params.values()], 0
    with measuring(model):
        for batch in batches:
            count += 1
            logits = model(batch.x)
            for row in rows(logits.detach(), batch.y):
                grads = torch.autograd.grad(logits, list(params.values()), row / len(batch.y), retain_graph=True)
                torch._foreach_add_(totals, [g.square().double() for g in grads])
    return {name: total / max(1, count) for name, total in zip(params, totals, strict=True)}


def weighted(model: nn.Module, batches: Iterable[Batch], weights: Tensor | None = None, free: Tensor | None = None,
             means: bool = False) -> Tensor:
    """G^T u, float64 [D], for weights u [n], or the sum of all gradients, or of the batches' means: a backward pass a batch."""
    params = list(model.parameters())
    total, at = torch.zeros(sum(p.numel() for p in params), dtype=torch.float64, device=params[0].device), 0
    with measuring(model):
        for batch in batches:
            logits = model(batch.x)
            slope = loss_slope(logits.detach(), batch.y)
            if weights is not None:
                slope = slope * weights[at : at + len(batch.y), None].to(slope)
            slope = slope / len(batch.y) if means else slope
            at += len(batch.y)
            total += flat(torch.autograd.grad(logits, params, slope))
    return total if free is None else total.masked_fill_(~free, 0)


def along(model: nn.Module, batches: Iterable[Batch], vectors: list[Tensor]) -> Tensor:
    """G v for every vector v [D], as float64 [n, number of vectors], without a gradient by any parameter.

    A layer that is linear in its parameters adds <slope of its output, layer(input) at parameters v>; a model with
    parameters elsewhere gets its examples' gradients.
    """
    layers, found = _linear_layers(model), []
    parts = [split(model, v) for v in vectors]
    with measuring(model):
        if not layers:
            return torch.cat([g.double() @ torch.stack(vectors, 1) for g in _gradients(model, batches)])
        for batch in batches:
            found.append(_by_layers(model, layers, batch, parts))
    return torch.cat(found)


def gram(model: nn.Module, loader: Loader, budget: int | None = None, free: Tensor | None = None) -> Tensor:
    """G G^T, float64 [n, n]; gradients that do not fit into the budget are computed again for each pair of blocks.

    Args:
        budget: bytes for the gradients that are kept; a part of what is free if None.
    """
    params = dict(model.named_parameters())
    columns = None if free is None else free.nonzero()[:, 0]  # of a sparse model's gradients only those that count are kept
    share = 1.0 if columns is None else max(1, len(columns)) / len(free)
    n, budget = loader.size, _budget(loader.images.device) if budget is None else budget
    budget = budget // 2  # the other half is for the chunk that is being differentiated
    fits = max(1, int(budget / (share * _bytes(params))))
    block = n if fits >= n else max(1, fits // 2)
    cuts = [(start, min(n, start + block)) for start in range(0, n, block)]
    found = torch.zeros(n, n, dtype=torch.float64, device=loader.images.device)
    with measuring(model):
        for i, (top, bottom) in enumerate(cuts):
            mine = gradients(model, piece(loader, top, bottom), budget, columns)
            for left, right in cuts[: i + 1]:
                others = mine if left == top else gradients(model, piece(loader, left, right), budget, columns)
                found[top:bottom, left:right] = products = inner(mine, others)
                found[left:right, top:bottom] = products.T
    return found


def inner(rows: Tensor, others: Tensor) -> Tensor:
    """Products of every row [n, D] with every other [m, D], float64 [n, m]; float64 but for short float32 sums.

    Of a matrix with itself only the lower half is computed, by strips.
    """
    same, m = rows is others, len(others)
    found = torch.zeros(len(rows), m, dtype=torch.float64, device=rows.device)
    strip = STRIP if same else max(1, m)
    for a, b in zip(rows.split(COLUMNS, 1), others.split(COLUMNS, 1), strict=True):
        for left in range(0, m, strip):
            top = left if same else 0
            found[top:, left : left + strip] += a[top:] @ b[left : left + strip].T
    return found.tril() + found.tril(-1).T if same else found


def gradients(model: nn.Module, loader: Loader, budget: int | None = None, columns: Tensor | None = None) -> Tensor:
    """G itself, [n, D] in the parameters' precision, or some of its columns, by their int64 indices."""
    first = next(model.parameters())
    width = sum(p.numel() for p in model.parameters()) if columns is None else len(columns)
    found, at = torch.empty(loader.size, width, dtype=first.dtype, device=first.device), 0
    with measuring(model):
        for part in _gradients(model, loader, budget):
            found[at : at + len(part)] = part if columns is None else part[:, columns]
            at += len(part)
    return found


def _gradients(model: nn.Module, batches: Iterable[Batch], budget: int | None = None) -> Iterator[Tensor]:
    """Rows of G, a chunk at a time."""
    params, buffers = _state(model)

    def gradient(x: Tensor, y: Tensor) -> Values:
        logits, pull = vjp(lambda p: functional_call(model, (p, buffers), (x[None],))[0], params)
        return pull(loss_slope(logits, y))[0]

    for x, y in _chunks(model, batches, params, budget):
        yield torch.cat([g.flatten(1) for g in vmap(gradient)(x, y).values()], 1)


def piece(loader: Loader, start: int, end: int) -> Loader:
    """Examples ``start`` to ``end`` of a loader, in its order."""
    return Loader(loader.images, loader.index[start:end], loader.labels[start:end], loader.batch_size)


def free_of(model: nn.Module, mask: Mask | None) -> Tensor | None:
    """True for each of the D weights that may move, bool [D]; None without a mask. What the mask does not name is free."""
    if mask is None:
        return None
    return torch.cat([mask[name].flatten().to(p.device) if name in mask else torch.ones_like(p, dtype=torch.bool).flatten()
                      for name, p in model.named_parameters()])


def flat(values: Iterable[Tensor]) -> Tensor:
    """One vector [D], float64, of tensors in the order of the parameters."""
    return torch.cat([value.flatten().double() for value in values])


def split(model: nn.Module, vector: Tensor) -> Values:
    """A vector [D] cut into the shapes and the precision of the model's parameters."""
    params = dict(model.named_parameters())
    parts = vector.split([p.numel() for p in params.values()])
    return {name: part.view(p.shape).to(p) for (name, p), part in zip(params.items(), parts, strict=True)}


def _linear_layers(model: nn.Module) -> dict[nn.Module, dict[str, str]]:
    """Layer -> own name of a parameter -> its name in the model; empty unless such layers hold every parameter once."""
    found, names = {}, {id(p): name for name, p in model.named_parameters()}
    for module in model.modules():
        own = {short: names[id(p)] for short, p in module.named_parameters(recurse=False)}
        if own and type(module) not in LINEAR:
            return {}
        if own:
            found[module] = own
    held = [name for own in found.values() for name in own.values()]
    return found if sorted(held) == sorted(names.values()) else {}


def _by_layers(model: nn.Module, layers: dict[nn.Module, dict[str, str]], batch: Batch, parts: list[Values]) -> Tensor:
    """G v of a batch, float64 [B, number of vectors]."""
    calls = []

    def seen(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        # the edge, since the next layer may overwrite the output in place
        calls.append((module, inputs[0], inputs[0]._version, get_gradient_edge(out)))

    handles = [layer.register_forward_hook(seen) for layer in layers]
    try:
        logits = model(batch.x)
    finally:
        for handle in handles:
            handle.remove()
    slopes = torch.autograd.grad(logits, [edge for *_, edge in calls], loss_slope(logits.detach(), batch.y))
    found = torch.zeros(len(batch.y), len(parts), dtype=torch.float64, device=logits.device)
    with torch.no_grad():
        for (module, inputs, version, _), slope in zip(calls, slopes, strict=True):
            assert inputs._version == version, "a layer's input was overwritten before its derivative was taken"
            for k, vector in enumerate(parts):
                there = {short: vector[name] for short, name in layers[module].items()}
                found[:, k] += (slope * functional_call(module, there, (inputs,))).sum(tuple(range(1, slope.ndim)))
    return found


def _state(model: nn.Module) -> tuple[Values, Values]:
    return {name: p.detach() for name, p in model.named_parameters()}, dict(model.named_buffers())


def _bytes(params: Values) -> int:
    return sum(p.numel() * p.element_size() for p in params.values())


def _budget(device: torch.device) -> int:
    if device.type != "cuda":
        return 3 * 2**30
    free, total = torch.cuda.mem_get_info(device)
    # where sums are cut follows from it, so under --deterministic it must not depend on what else is there
    return total // 4 if torch.are_deterministic_algorithms_enabled() else free // 2


def _activations(model: nn.Module, x: Tensor) -> int:
    """Bytes that a pass of the images keeps for its backward pass, weights left out."""
    kept, weights = [0], {p.untyped_storage().data_ptr() for p in model.parameters()}

    def count(value: Tensor) -> Tensor:
        kept[0] += value.nbytes if value.untyped_storage().data_ptr() not in weights else 0
        return value

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        model(x)
    return kept[0]


def _chunks(model: nn.Module, batches: Iterable[Batch], params: Values, budget: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of as many examples as may have their gradients and activations held at a time."""
    budget, size = _budget(next(iter(params.values())).device) if budget is None else budget, 0
    for batch in batches:
        size = size or max(1, min(CHUNK, budget // (COPIES * (_bytes(params) + _activations(model, batch.x[:1])))))
        yield from zip(batch.x.split(size), batch.y.split(size), strict=True)
