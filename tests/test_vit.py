"""The vision transformer for small images against plain loops; its checkpoints, and its dropout after a run was killed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import shell
import torch
from shell import QUIET
from test_models import assert_near, images, perturbed, structure
from torch import Tensor
from torch.nn import functional as F

import main_train
import models
from models.vit import LocalAttention, ShiftedPatches
from trainer import Descent
from utils import BadInput

VIT = ["--dataset", "digits", "--arch", "vit", "--classes", "0-2", "--batch_size", "64", "--lr", "0.01"]
pytestmark = pytest.mark.usefixtures("nowhere")
nowhere = pytest.fixture(shell.nowhere)


@pytest.mark.parametrize(("classes", "size"), [(20, 32), (15, 32), (10, 64), (3, 8)])
def test_the_parameters_to_the_number(classes: int, size: int) -> None:
    """Tokens of 5 x 3 x 4 x 4 numbers; 4 blocks of width 512 with 6 heads of 64 and 256 hidden; a head behind a LayerNorm."""
    tokens = 2 * 240 + 240 * 512 + 512
    places = 512 + (1 + (size // 4) ** 2) * 512
    attention = 2 * 512 + 1 + 512 * 1152 + 384 * 512 + 512
    feed = 2 * 512 + 512 * 256 + 256 + 256 * 512 + 512
    total = tokens + places + 4 * (attention + feed) + 2 * 512 + 513 * classes
    with torch.device("meta"):
        model = models.ARCHS["vit"].make(classes, image_size=size)
    assert sum(p.numel() for p in model.parameters()) == total
    if size == 32:  # the published model has 4.37 million, of 15 classes
        assert total == {15: 4_374_003, 20: 4_376_568}[classes]


def test_shifted_patches_equal_a_plain_loop() -> None:
    """Every number of every patch, from the image and its four copies moved by two pixels along the diagonals."""
    torch.manual_seed(0)
    layer, x = ShiftedPatches(4, 7).double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)

    def pixel(b: int, c: int, i: int, j: int) -> float:
        return float(x[b, c, i, j]) if 0 <= i < 8 and 0 <= j < 8 else 0.0

    rows = []
    for b in range(2):
        for top in (0, 4):
            for left in (0, 4):
                rows.append([pixel(b, c, top + i + di, left + j + dj)
                             for di, dj in ((0, 0), (-2, -2), (-2, 2), (2, -2), (2, 2))
                             for c in range(3) for i in range(4) for j in range(4)])
    raw = torch.tensor(rows, dtype=torch.float64)
    middle = (raw - raw.mean(1, keepdim=True)) / (raw.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    expected = (middle @ layer.project.weight.T + layer.project.bias).reshape(2, 4, 7)
    torch.testing.assert_close(layer(x), expected)


def plain_attention(layer: LocalAttention, x: Tensor) -> Tensor:
    heads, wide = layer.heads, layer.head_width
    found = []
    for tokens in layer.norm(x):
        out = []
        for head in range(heads):
            q, k, v = (tokens @ layer.qkv.weight[(part * heads + head) * wide : (part * heads + head + 1) * wide].T
                       for part in range(3))
            rows = []
            for i in range(len(tokens)):
                others = [j for j in range(len(tokens)) if j != i]
                scores = torch.stack([q[i] @ k[j] * math.exp(float(layer.log_scale)) for j in others])
                weights = (scores - scores.max()).exp()
                rows.append(sum(w / weights.sum() * v[j] for w, j in zip(weights, others, strict=True)))
            out.append(torch.stack(rows))
        found.append(torch.cat(out, 1) @ layer.out.weight.T + layer.out.bias)
    return torch.stack(found)


def test_local_attention_equals_a_plain_loop_that_leaves_each_token_out_of_its_own_average() -> None:
    torch.manual_seed(1)
    layer = LocalAttention(6, 2, 3, dropout=0.5).double().eval()
    layer.reset_parameters()
    assert float(layer.log_scale.detach().exp()) == pytest.approx(1 / math.sqrt(3))
    with torch.no_grad():
        layer.log_scale.fill_(0.4)
        x = torch.randn(2, 5, 6, dtype=torch.float64)
        torch.testing.assert_close(layer(x), plain_attention(layer, x))


def test_the_temperature_is_learned() -> None:
    layer = LocalAttention(6, 2, 3, dropout=0.0)
    layer.reset_parameters()
    layer(torch.randn(1, 4, 6)).square().sum().backward()
    assert bool(layer.log_scale.grad.any())


def test_logits_are_of_the_class_token_through_all_blocks() -> None:
    model, x = perturbed("vit", size=8).double(), images(2, 8).double()
    state = model.state_dict()
    with torch.no_grad():
        tokens = torch.cat([state["token"].expand(2, 1, -1), model.patches(model.normalize(x))], 1) + state["positions"]
        for block in model.blocks:
            tokens = tokens + block.attention(tokens)
            hidden = F.gelu(F.linear(block.feed[0](tokens), block.feed[1].weight, block.feed[1].bias))
            tokens = tokens + F.linear(hidden, block.feed[4].weight, block.feed[4].bias)
        features = F.layer_norm(tokens[:, 0], (512,), state["norm.weight"], state["norm.bias"])
        assert_near(models.embed(model, x), features, 1e-12)
        assert_near(model(x), features @ state["fc.weight"].T + state["fc.bias"], 1e-12)


def test_initialisation_reaches_every_parameter() -> None:
    """Two builds of one seed are equal, of two seeds differ, and memory that was never written shows nowhere."""
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        model = models.build("vit", 3, (0.5,) * 3, (0.5,) * 3, image_size=8)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    first = drawn(1)
    assert torch.equal(first, drawn(1)) and not torch.equal(first, drawn(2)) and bool(first.isfinite().all())
    with torch.device("meta"):
        names = [name for name, _ in models.ARCHS["vit"].make(3, image_size=8).named_parameters()]
    torch.manual_seed(1)
    model = models.ARCHS["vit"].make(3, image_size=8)
    for p in model.parameters():
        p.data.fill_(7.0)
    model.reset_parameters()
    assert not [name for name in names if bool((model.get_parameter(name) == 7).any())]


def test_images_that_no_patch_divides_are_refused() -> None:
    with pytest.raises(BadInput, match="multiple of 4 pixels; got 30; these take it: .*resnet18"):
        models.build("vit", 3, (0.5,) * 3, (0.5,) * 3, image_size=30)
    assert structure("vit").positions.shape == (1, 65, 512)


# ---------------------------------------------------------------------------------------------------- in the stages


def test_a_checkpoint_says_the_side_of_its_images_and_is_read_without_flags(tmp_path: Path) -> None:
    main_train.main([*QUIET, *VIT, "--epochs", "1", "--save_dir", str(tmp_path)])
    original = shell.only(tmp_path, "train")
    content = torch.load(original.folder / "model.pt", weights_only=True)
    assert (content["arch"], content["image_size"]) == ("vit", 8)
    shell.forget(original, tmp_path, "FT", *shell.FORGET)
    assert shell.only(tmp_path, "forget").setting("arch") == "vit"
    content["image_size"] = 32
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(SystemExit) as end:
        shell.call("main_forget.py", *VIT[:6], "--checkpoint", tmp_path / "other.pt", "--unlearn", "FT", *shell.FORGET,
                   save_dir=tmp_path)
    assert end.value.code == 2


def test_a_killed_training_with_dropout_ends_in_the_same_bits(tmp_path: Path) -> None:
    words = [*QUIET, *VIT, "--classes", "0-1", "--batch_size", "128", "--epochs", "2", "--resume_every", "0"]
    main_train.main([*words, "--save_dir", str(tmp_path / "whole")])
    with pytest.MonkeyPatch.context() as patch:
        shell.interrupt_step(patch, Descent, 4)  # of three in an epoch
        with pytest.raises(KeyboardInterrupt):
            main_train.main([*words, "--save_dir", str(tmp_path / "cut")])
    main_train.main([*words, "--save_dir", str(tmp_path / "cut")])
    whole, cut = (shell.weights(shell.only(tmp_path / name, "train")) for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
