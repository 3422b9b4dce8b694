"""Every unlearning method on every kind of network: finite weights, or a refusal in one line."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import shell
import torch
from conftest import TOY, TRAINED, quiet_runtime, short_config, snapshot, toy_arrays
from shell import call, only
from torch import nn

import models
from dataset import Data, Images, Splits
from models import Normalize, vgg
from models.cifarnet import CifarNet
from models.deep import deep_layers, outputs_of
from models.libraries import Borrowed
from models.vit import ViT
from pruner import magnitude, synflow
from pruner.mask import largest
from pruner.plan import Plan, PruneConfig
from unlearn import METHODS
from unlearn.saliency import saliency
from utils import BadInput

SIDE = 16
NORMALIZE = ((0.5,) * 3, (0.25,) * 3)
NETWORKS = ("resnet8s", "vgg", "vit", "swin", "cifarnet")
nowhere = pytest.fixture(autouse=True)(shell.nowhere)


@cache
def network(kind: str) -> nn.Module:
    """One of the four kinds, as narrow as it can be."""
    torch.manual_seed(4)
    norm = Normalize(*NORMALIZE)
    if kind == "resnet8s":
        return models.build("resnet8s", 3, *NORMALIZE)
    if kind == "vgg":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vgg, "WIDTHS", (4, 4, 8, 8, 8))
            head = nn.Sequential(nn.Linear(32, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
            model = vgg.VGG(norm, vgg._features((1, 1, 2, 2, 2), bias=False, last_pool=False), 2, head)
    elif kind == "cifarnet":
        model = CifarNet((24, 24, 28), 3, norm)
    elif kind == "vit":
        model = ViT(3, norm, SIDE, width=16, depth=2, heads=2, head_width=4, hidden=16)
    else:
        from torchvision.models import SwinTransformer

        swin = SwinTransformer(patch_size=[2, 2], embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=[2, 2],
                               num_classes=3, stochastic_depth_prob=0.2)
        model = Borrowed(swin, norm, SIDE)
    model.reset_parameters()
    model.arch, model.num_classes, model.imagenet = kind, 3, False
    return model


def fresh(kind: str) -> nn.Module:
    return copy.deepcopy(network(kind))


def tiny_data() -> Data:
    """36 images of 16 x 16: 6 for validation, of the others one class to forget."""
    rt, source = quiet_runtime(), dataclasses.replace(TOY, size=SIDE)
    x, y = toy_arrays(36, 0, size=SIDE)
    train = np.arange(6, 36)
    splits = Splits(train, np.arange(6), train[y[train] != 0], train[y[train] == 0], (), "toy-data", "toy-split")
    return Data(source, Images(x, y, source, rt), Images(x[:12], y[:12], source, rt), 3, splits, 8, False)


def check_matrix(kind: str, name: str) -> None:
    model, before = fresh(kind), snapshot(network(kind))
    cfg = short_config(name, unlearn_epochs=1, unlearn_lr=1e-3, rate=0.5, fisher_mode="exact",
                       our_layers=("distinct",))
    try:
        METHODS[name].apply(model, tiny_data(), cfg, quiet_runtime())
    except BadInput as error:
        assert "\n" not in str(error) and len(str(error)) < 400 and "--arch" in str(error), error
        return
    after = snapshot(model)
    if kind == "cifarnet":  # what is fixed in it is no parameter, whatever a method does to all parameters
        assert all(torch.equal(value, network(kind).get_buffer(key)) for key, value in model.named_buffers() if "weight" in key)
    assert all(bool(value.isfinite().all()) for value in after.values())
    if name in TRAINED and not METHODS[name].fresh:
        assert any(not torch.equal(after[key], before[key]) for key in after)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_runs_on_every_kind_of_network(name: str, kind: str) -> None:
    check_matrix(kind, name)


# ------------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_pruned_is_convolutions_or_else_linear_layers_but_the_head(kind: str) -> None:
    model = fresh(kind)
    found = list(magnitude.prunable(model))
    layers = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    wanted = nn.Linear if kind in ("vit", "swin") else nn.Conv2d
    spared = ("fc.weight", "head.weight", "whiten.weight")  # the last has fixed filters
    assert found == [name for name in layers if isinstance(layers[name], wanted) and name not in spared]
    assert list(magnitude.prunable(model, "global_all")) == [name for name, _ in model.named_parameters() if name in layers]


def test_torchs_attention_is_pruned_with_its_queries_keys_and_values() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.TransformerEncoderLayer(4, 2, 8), nn.Linear(4, 3))
    assert list(magnitude.prunable(model)) == ["1.self_attn.in_proj_weight", "1.self_attn.out_proj.weight", "1.linear1.weight",
                                               "1.linear2.weight"]


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_pruning_a_transformer_is_told_and_synflow_refuses_it(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Plan.of(PruneConfig(prune_type="lt", rate=0.5), 3, "step").check(fresh(kind))
    assert f"--prune_scope global_conv: {kind} has fewer convolutions than linear layers" in capsys.readouterr().out
    with pytest.raises(BadInput, match="SynFlow .*choose another --arch, or main_imp.py"):
        synflow.prune(fresh(kind), 0.5, 3, (3, SIDE, SIDE), [])


def test_pruning_a_convolutional_network_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Plan.of(PruneConfig(prune_type="lt", rate=0.5), 3, "step").check(fresh("vgg"))
    assert not capsys.readouterr().out


def test_pruned_weights_of_a_transformer_stay_0_and_its_head_whole() -> None:
    model = fresh("vit")
    cfg = short_config("FT_prune_bi", unlearn_epochs=2, rate=0.6)
    mask = METHODS["FT_prune_bi"].apply(model, tiny_data(), cfg, quiet_runtime())
    weights = magnitude.prunable(model)
    assert set(mask) == set(weights) and not any(bool(weights[name][~part].any()) for name, part in mask.items())
    gone = sum(int((~part).sum()) for part in mask.values())
    assert gone == round(0.6 * sum(part.numel() for part in mask.values())) and "fc.weight" not in mask


@pytest.mark.parametrize(("kind", "bn", "told"), [("vit", "eval", True), ("vit", "batch", False), ("resnet8s", "eval", False)])
def test_a_way_of_batch_norm_is_idle_where_there_is_none(kind: str, bn: str, told: bool,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    METHODS["GA"].apply(fresh(kind), tiny_data(), short_config("GA", unlearn_epochs=1, unlearn_lr=1e-4, bn=bn), quiet_runtime())
    assert (f"--bn has no effect: {kind} has no batch norm" in capsys.readouterr().out) == told


# ---------------------------------------------------------------------------------------- masks, dropout, gradients


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_saliency_masks_name_every_parameter_and_hold_it(kind: str) -> None:
    model, data = fresh(kind), tiny_data()
    mask = largest(saliency(model, data.loader("forget")), (0.5,))[0.5]
    assert list(mask) == [name for name, _ in model.named_parameters()]
    before = snapshot(model)
    METHODS["RL"].apply(model, data, short_config("RL", unlearn_epochs=1), quiet_runtime(), None, mask)
    for name, p in model.named_parameters():
        assert torch.equal(p[~mask[name]], before[name][~mask[name]]), name


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_dropout_and_stochastic_depth_are_streams_of_the_run(kind: str) -> None:
    """Whatever the global stream stands at, two runs of a seed end in the same bits, and the global stream stays."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model, state = fresh(kind), torch.get_rng_state()
        METHODS["FT"].apply(model, tiny_data(), short_config("FT", unlearn_epochs=1), quiet_runtime())
        assert torch.equal(torch.get_rng_state(), state)
        found.append(snapshot(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("kind", NETWORKS)
def test_deep_layers_have_a_row_for_each_image(kind: str) -> None:
    model, names = fresh(kind), deep_layers(network(kind))
    with outputs_of(model, names) as seen:
        model(torch.rand(3, 3, SIDE, SIDE))
    assert len(set(names)) == 3 and all(len(seen[name]) == 3 and seen[name].requires_grad for name in names)


# ------------------------------------------------------------------------------------------------------- in the stages


def test_the_stages_of_a_vision_transformer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, a saliency mask, proxies of its training, ES scores, and one prune, on two digits; a narrow one for speed."""
    for size, value in {"width": 32, "depth": 2, "heads": 2, "head_width": 8, "hidden": 32}.items():
        monkeypatch.setitem(ViT.__init__.__kwdefaults__, size, value)
    words = ["--dataset", "digits", "--arch", "vit", "--classes", "0-1", "--batch_size", "128", "--lr", "0.01"]
    call("main_train.py", *words, "--epochs", 1, save_dir=tmp_path)
    original = only(tmp_path, "train")
    call("generate_mask.py", "--checkpoint", original.folder, *shell.FORGET, save_dir=tmp_path)
    for score in (["--mem_proxy", "confidence"], ["--score", "es"]):
        call("main_memorization.py", "--checkpoint", original.folder, *score, save_dir=tmp_path)
    call("main_imp.py", *words, "--prune_type", "lt", "--rate", "0.5", "--epochs", 1, save_dir=tmp_path)
    pruned = only(tmp_path, "imp")
    layers = pruned.record["layers"]
    assert "blocks.0.attention.qkv.weight" in layers and "fc.weight" not in layers
    assert pruned.record["remaining"] == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(SystemExit) as end:
        call("main_synflow.py", *words, "--epochs", 1, save_dir=tmp_path)
    assert end.value.code == 2


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # one of vmap's rules for Swin's pooling is a loop
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_gradients_of_single_examples_equal_a_loop(kind: str) -> None:
    from unlearn.persample import gradients

    model, data = fresh(kind).eval(), tiny_data()
    loader = data.subset(data.index("forget")[:3])
    rows = []
    for batch in loader:
        for x, y in zip(batch.x, batch.y, strict=True):
            loss = nn.functional.cross_entropy(model(x[None]), y[None])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    torch.testing.assert_close(gradients(model, loader), torch.stack(rows), rtol=1e-3, atol=1e-5)
