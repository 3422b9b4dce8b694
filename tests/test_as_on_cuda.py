"""What a GPU does otherwise than a CPU, emulated here: rounding, refused kernels, cards, shapes under the compiler.

Each test says how. ``tests/gpu`` has what needs the device itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import quiet_runtime, tiny_net
from torch import Tensor, nn

import models
from dataset import Data
from memorization import entanglement, events, factory
from models.layers import AveragePool
from pruner import mask
from trainer import Descent, ScheduleConfig, cross_entropy, predict
from unlearn import persample
from unlearn.saliency import saliency
from utils import Runtime, RuntimeConfig

# --------------------------------------------------------------------------------------------------- TF32 and bf16


def rounded(x: Tensor) -> Tensor:
    """x to the nearest of TF32's 10 bits after the leading one, as a tensor core reads its operands; gradients pass."""
    bits = (x.detach().contiguous().view(torch.int32) + 0x1000) & ~0x1FFF
    return x + (bits.view(torch.float32).view_as(x) - x).detach()


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Convolutions that round their operands while cuDNN's switch allows TF32, forward and, by autograd, backward."""
    plain = F.conv2d

    def conv2d(x: Tensor, weight: Tensor, *rest: Any, **more: Any) -> Tensor:
        if torch.backends.cudnn.allow_tf32 and x.dtype == torch.float32:
            x, weight = rounded(x), rounded(weight)
        return plain(x, weight, *rest, **more)

    monkeypatch.setattr(F, "conv2d", conv2d)
    monkeypatch.setattr(nn.modules.conv.F, "conv2d", conv2d)
    before = torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


def of_model(name: str, data: Data, rt: Runtime) -> Tensor:
    """A measure of a network that has been trained for a while, as one vector."""
    with rt.seeded("model"):
        model = models.build("resnet8s", 3, (0.5,) * 3, (0.25,) * 3)
    if name == "predictions":
        return predict(model, data.loader("train"), rt)[0].flatten()
    if name == "features":
        return entanglement.features(model, data.loader("train"), rt).flatten()
    if name == "saliency":
        return torch.cat([part.flatten() for part in saliency(model, data.loader("forget")).values()])
    if name == "squares":
        return persample.flat(persample.squared_means(model, data.loader("forget")).values())
    batch = next(iter(data.loader("train")))
    return events.curvature(model.eval(), batch.x, batch.y, 0.01)


@pytest.mark.parametrize("name", ["predictions", "features", "saliency", "squares", "curvature"])
def test_measures_are_the_same_where_training_may_use_tf32(name: str, data: Data, tf32: None) -> None:
    """Bit by bit; without the switch back to float32 each of them moves, as the emulation itself is seen to."""
    found = []
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        found.append(of_model(name, data, quiet_runtime()))
        assert torch.backends.cudnn.allow_tf32 is allowed
    assert torch.equal(*found)
    torch.backends.cudnn.allow_tf32 = True
    x = torch.rand(2, 3, 6, 6)
    net = models.build("resnet8s", 3, (0.5,) * 3, (0.25,) * 3).eval()
    rough = net(x)
    torch.backends.cudnn.allow_tf32 = False
    assert 0 < float((rough - net(x)).detach().abs().max()) < 0.1


OWN_HEADS = ["resnet8s", "vgg11_bn", "wrn_28_2", "allcnn", "vit"]  # one of each file


@pytest.mark.parametrize("name", OWN_HEADS)
def test_head_is_in_float32_where_the_rest_is_in_bf16(name: str) -> None:
    """bf16 autocast on the CPU. Logits keep float32's digits: hardly one is a number of bf16, as all of them were."""
    with quiet_runtime().seeded("model"):
        model = models.build(name, 10, (0.5,) * 3, (0.25,) * 3).eval()
    seen: list[Tensor] = []
    head = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    head.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    x = torch.rand(2, 3, *(2 * [32 if name == "vit" else 16]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == seen[0].dtype == torch.float32
    assert float((logits == logits.bfloat16().float()).float().mean()) < 0.5
    assert model.double()(x.double()).dtype == torch.float64


def test_watch_and_loss_of_a_training_see_the_logits_of_a_float32_head(data: Data) -> None:
    """In bf16 on the CPU: the labels' logits lie closer together than bf16 can tell, and the events tell them apart."""
    rt, seen = Runtime(RuntimeConfig(seed=5, device="cpu", precision="bf16", progress=False)), []
    with rt.seeded("model"):
        model = models.build("resnet8s", 3, (0.5,) * 3, (0.25,) * 3)
    with torch.no_grad():
        model.fc.weight.copy_(model.fc.weight[:1] + torch.tensor([0.0, 1e-6, 2e-6])[:, None])
        model.fc.bias.copy_(torch.tensor([100.0, 100.001, 100.002]))

    class Look:
        keep: dict[str, Any] = {}

        def begin(self, epoch: int, epochs: int) -> None: ...

        def before(self, model: nn.Module, batch: Any) -> None: ...

        def after(self, batch: Any, logits: Tensor) -> None:
            seen.append(events.learning_events(logits, batch.y)["bi_acc"] == (batch.y == 2))

    from trainer import TrainConfig, train

    train(model, data.loader("train", rt, "train"), TrainConfig(lr=1e-9, epochs=1), rt, None, watch=Look())
    assert seen and all(bool(part.all()) for part in seen)


# ------------------------------------------------------------------------------------------------- refused kernels


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As --deterministic sets torch on a GPU, where adaptive pooling to more than 1 x 1 is refused."""
    plain = F.adaptive_avg_pool2d

    def refused(x: Tensor, size: tuple[int, int]) -> Tensor:
        assert tuple(size) == (1, 1), "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation"
        return plain(x, size)

    monkeypatch.setattr(F, "adaptive_avg_pool2d", refused)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (6, 13), (16, 7)])
def test_deterministic_average_pool_needs_no_kernel_that_cuda_refuses(size: tuple[int, int], request: Any) -> None:
    """The kernel is made to refuse; values and gradients are its own (1e-12, float64)."""
    x = torch.rand(2, 3, *size, dtype=torch.float64, requires_grad=True)
    there = F.adaptive_avg_pool2d(x, (7, 7))
    weight = torch.rand_like(there)
    slope = torch.autograd.grad((there * weight).sum(), x)[0]
    assert torch.equal(AveragePool((7, 7))(x), there)  # and where nothing is refused it is that kernel
    request.getfixturevalue("deterministic")
    here = AveragePool((7, 7))(x)
    torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad((here * weight).sum(), x)[0], slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "imagenet"), [("vgg11_bn", True), ("vgg16_bn_lth", False), ("resnet18", True)])
def test_networks_pool_without_what_cuda_refuses(name: str, imagenet: bool, deterministic: None) -> None:
    with torch.device("meta"):
        model = models.ARCHS[name].make(3, imagenet=imagenet)
        for side in (32, 64):
            assert model.features_of(torch.empty(2, 3, side, side)).dim() == 2


# ------------------------------------------------------------------------------------------------- ranks of weights


@pytest.mark.parametrize("switched", [False, True])
def test_one_sort_on_the_device_serves_all_counts(switched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tensors that say they are on a GPU, with and without --deterministic: one sort, no kthvalue, the same masks."""
    scores = {"a": torch.rand(40, 7).mul(20).round(), "b": torch.rand(33).mul(20).round()}
    counts = (5, 90, 200, 313)
    expected = mask.top(scores, counts)
    sort, sorts = Tensor.sort, []
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True), raising=False)
    monkeypatch.setattr(torch, "kthvalue", lambda *args: pytest.fail("leaves all scores to one block"))
    monkeypatch.setattr(Tensor, "cpu", lambda self: pytest.fail("left the device"))
    monkeypatch.setattr(Tensor, "sort", lambda self: sorts.append(len(self)) or sort(self))
    torch.use_deterministic_algorithms(switched)
    try:
        found = mask.top(scores, counts)
    finally:
        torch.use_deterministic_algorithms(False)
    assert sorts == [313]
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in scores)


# ------------------------------------------------------------------------------------------------------- the compiler


def test_compiled_training_has_a_graph_for_each_shape(monkeypatch: pytest.MonkeyPatch, data: Data) -> None:
    """With a backend that counts graphs and runs them as they are: after a short last batch the full ones go on through the
    graph of their own shape, and no size is a symbol."""
    import torch._dynamo

    shapes: list[tuple[Any, ...]] = []

    def backend(graph: Any, inputs: list[Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            shapes.append(next(tuple(a.shape) for a in args if isinstance(a, Tensor) and a.dim() == 4 and a.shape[1] == 3
                               and a.shape[2] == 6))
            assert not any(isinstance(a, (int, torch.SymInt)) for a in inputs), "a size is a symbol"
            return graph(*args)

        return run

    rt = Runtime(RuntimeConfig(seed=5, device="cpu", progress=False, compile="default"))
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode, **more: plain(self, backend=backend, **more))
    torch._dynamo.reset()
    model = tiny_net(rt)
    opt = Descent(model, ScheduleConfig(), lr=0.01, epochs=2, rt=rt, purpose="train")
    loader = data.loader("train", rt, "train")
    assert loader.size % loader.batch_size
    for opt.at in range(2):
        opt.epoch(loader, cross_entropy)
    torch._dynamo.reset()
    assert len(shapes) == 2 * len(loader) and {shape[0] for shape in shapes} == {16, loader.size % 16}


# ------------------------------------------------------------------------------------------------------------ the cards


@pytest.mark.parametrize(("visible", "gpus", "workers", "expected"), [
    (None, 0, 2, [None, None]),
    ("", 0, 2, [None, None]),
    (None, 1, 4, ["0"] * 4),
    ("", 1, 2, ["0"] * 2),  # as some systems read it: nothing is hidden
    (None, 3, 2, ["0", "1"]),
    ("5", 1, 3, ["5"] * 3),
    ("2, 7", 2, 5, ["2", "7", "2", "7", "2"]),
    ("GPU-8f1c,GPU-02aa", 2, 3, ["GPU-8f1c", "GPU-02aa", "GPU-8f1c"]),
    ("3,1,-1,0", 2, 3, ["3", "1", "3"])])
def test_every_process_sees_one_card(visible: str | None, gpus: int, workers: int, expected: list[str | None],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable as it stands and the number of cards that torch counts: a process never gets it empty."""
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [place.get("CUDA_VISIBLE_DEVICES") for place in factory._places(workers, gpus)] == expected
