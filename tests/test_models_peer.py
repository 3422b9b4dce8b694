"""The reader of published checkpoints: every form gives the same logits; what does not fit is refused in one line."""

from __future__ import annotations

import collections
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_models import MEAN, STD, State, assert_near, bad_input, images, perturbed
from torch import Tensor, nn
from torch.nn.utils import prune

import models


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def published(model: nn.Module) -> dict[str, Any]:
    """The keys of a published training checkpoint, and of an unlearning one (numpy scalars in the evaluation)."""
    evaluation = {"accuracy": {"retain": 99.5}, "SVC_MIA_forget_efficacy": {"confidence": np.float64(0.12)}}
    return {"state": 0, "result": {"train_ta": [90.1, 91.2]}, "epoch": 182, "state_dict": model.state_dict(),
            "best_sa": 94.2, "scheduler": {"milestones": collections.Counter({91: 1, 136: 1})}, "init_weight": None,
            "evaluation_result": evaluation}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model.state_dict(),
        published,
        lambda model: {f"module.{key}": value for key, value in model.state_dict().items()},
        lambda model: {"state_dict": {f"_orig_mod.module.{k}": v for k, v in model.state_dict().items()}},
        lambda model: {k: v.view(1, 3, 1, 1) if k.startswith("norm") else v for k, v in model.state_dict().items()},
        lambda model: {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["bare", "published", "module", "compiled", "shaped-normalisation", "no-counters"],
)
def test_published_forms_are_read_with_all_their_values(wrap: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    model, x = perturbed("resnet20s", 7), images()
    random_state = torch.get_rng_state()
    read, mask = models.load_peer(saved(tmp_path / "0model_SA_best.pth.tar", wrap(model)), "resnet20s", num_classes=7)
    assert torch.equal(random_state, torch.get_rng_state())
    assert mask is None and (read.arch, read.num_classes, read.imagenet) == ("resnet20s", 7, False)
    assert read.normalize.mean.shape == (3,) and read.training and read.conv1.weight.requires_grad
    with torch.no_grad():
        assert torch.equal(read.eval()(x), model(x))


@pytest.mark.parametrize(("name", "imagenet"), [("resnet18", False), ("resnet18", True), ("vgg11_bn", False)])
def test_class_count_and_stem_are_read_from_the_weights(name: str, imagenet: bool) -> None:
    model = perturbed(name, 13, imagenet=imagenet)
    state = model.state_dict()
    read, _ = models.load_peer(state, name)
    assert (read.num_classes, read.imagenet) == (13, imagenet) == (models.infer_num_classes(state, name), imagenet)
    assert all(torch.equal(value, state[key]) for key, value in read.state_dict().items())
    assert read.state_dict()["conv1.weight" if name == "resnet18" else "features.0.weight"].data_ptr() != next(
        model.parameters()).data_ptr()
    bad_input(lambda: models.load_peer(state, name, imagenet=not imagenet), "stem", "--imagenet_arch")


def test_normalisation_of_the_file_goes_before_the_callers_and_one_of_them_must_be() -> None:
    state = perturbed("resnet20s").state_dict()
    bare = {key: value for key, value in state.items() if not key.startswith("normalize.")}
    assert models.load_peer(bare, "resnet20s", mean=MEAN, std=STD)[0].normalize.mean.tolist() == pytest.approx(MEAN)
    kept = models.load_peer(state, "resnet20s", mean=MEAN, std=STD)[0].normalize
    assert torch.equal(kept.mean, state["normalize.mean"]) and kept.mean.tolist() != pytest.approx(MEAN)
    bad_input(lambda: models.load_peer(bare, "resnet20s"), "normalize.mean", "give the mean and std")
    half = {key: value for key, value in state.items() if key != "normalize.std"}
    bad_input(lambda: models.load_peer(half, "resnet20s"), "only one of", "damaged")


def test_a_pruned_checkpoint_gives_its_weights_and_its_mask(tmp_path: Path) -> None:
    model, x = perturbed("resnet20s"), images()
    generator, expected = torch.Generator().manual_seed(8), {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and name != "conv1":
            kept = torch.rand(module.weight.shape, generator=generator) < 0.3
            expected[f"{name}.weight"] = kept
            prune.custom_from_mask(module, "weight", kept.float())
    read, mask = models.load_peer(saved(tmp_path / "1model_SA_best.pth.tar", published(model)), "resnet20s")
    assert mask is not None and mask.keys() == expected.keys() and mask.keys() < dict(read.named_parameters()).keys()
    assert all(mask[name].dtype == torch.bool and torch.equal(mask[name], expected[name]) for name in mask)
    assert all(not read.state_dict()[name][~mask[name]].any() for name in mask)
    with torch.no_grad():
        assert_near(read.eval()(x), model(x), 1e-6)


def without(key: str) -> Callable[[State], State]:
    return lambda state: {k: v for k, v in state.items() if k != key}


PRUNED = ("conv1.weight_orig", "conv1.weight_mask")


def pruned_with(orig: Tensor | None, kept: Tensor | None) -> Callable[[State], State]:
    pair = {key: value for key, value in zip(PRUNED, (orig, kept), strict=True) if value is not None}
    return lambda state: {**without("conv1.weight")(state), **pair}


STRICT: dict[str, tuple[Callable[[State], Any], tuple[str, ...]]] = {
    "a missing key": (without("layer1.0.bn1.bias"), ("layer1.0.bn1.bias is missing", "--arch")),
    "a missing counter": (without("bn1.num_batches_tracked"), ("bn1.num_batches_tracked is missing",)),
    "an extra key": (lambda s: {**s, "swin.weight": torch.zeros(2)}, ("swin.weight is unknown",)),
    "a key of two lines": (lambda s: {**s, "bn1\nbias": torch.zeros(2)}, (r"'bn1\nbias' is unknown",)),
    "another shape": (lambda s: {**s, "conv1.weight": torch.zeros(16, 3, 5, 5)}, ("[16, 3, 5, 5]", "[16, 3, 3, 3]")),
    "another class count": (lambda s: {**s, "fc.weight": torch.zeros(9, 64), "fc.bias": torch.zeros(9)}, ("9 classes", "10")),
    "a bias of another class count": (lambda s: {**s, "fc.bias": torch.zeros(9)}, ("another number of classes",)),
    "no head": (without("fc.weight"), ("fc.weight", "--arch")),
    "another architecture": (lambda s: perturbed("vgg16_bn_lth").state_dict(), ("fc.weight",)),
    "a deeper architecture": (lambda s: perturbed("resnet32s").state_dict(), ("unknown", "more")),
    "not a state_dict": (lambda s: {"state_dict": {"epoch": 3}}, ("epoch is a int",)),
    "an empty one": (lambda s: {}, ("empty",)),
    "a list": (lambda s: [1, 2], ("list",)),
    "a grey normalisation": (lambda s: {**s, "normalize.mean": torch.zeros(1)}, ("3 colours",)),
    "an original without its mask": (pruned_with(torch.zeros(16, 3, 3, 3), None), ("conv1.weight_orig", "pair")),
    "a mask without its original": (pruned_with(None, torch.ones(16, 3, 3, 3)), ("conv1.weight_mask", "pair")),
    "a pruned weight and its plain name": (
        lambda s: {**s, PRUNED[0]: s["conv1.weight"], PRUNED[1]: torch.ones(16, 3, 3, 3)}, ("pair", "damaged"),
    ),
    "a mask of another shape": (pruned_with(torch.ones(16, 3, 3, 3), torch.ones(16)), ("0/1 mask",)),
    "a mask that is none": (pruned_with(torch.ones(16, 3, 3, 3), torch.full((16, 3, 3, 3), 0.5)), ("0/1 mask",)),
}


@pytest.mark.parametrize("case", STRICT)
def test_weights_that_do_not_fit_are_bad_input(case: str, tmp_path: Path) -> None:
    change, words = STRICT[case]
    path = saved(tmp_path / "model.pth.tar", change(perturbed("resnet20s").state_dict()))
    bad_input(lambda: models.load_peer(path, "resnet20s", num_classes=10), str(path), *words)


def test_files_that_cannot_be_read_safely_are_bad_input(tmp_path: Path) -> None:
    state = perturbed("resnet20s").state_dict()
    whole, path = saved(tmp_path / "whole.pt", state).read_bytes(), tmp_path / "model.pt"

    def refused(*words: str) -> None:
        bad_input(lambda: models.load_peer(path, "resnet20s"), str(path), *words)

    refused("does not exist")
    for content, words in (
        (b"", "is empty"),
        (whole[: len(whole) // 2], "truncated"),
        (whole[:100], "truncated"),
        (whole[:-1], "truncated"),
        (b"<html>404</html>", "not a file of torch.save"),
        (np.random.default_rng(9).bytes(5000), "not a file of torch.save"),
    ):
        path.write_bytes(content)
        refused(words)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-5000])
    refused("truncated")
    saved(path, {"state_dict": state, "args": pathlib.PurePosixPath("x")})
    refused("pathlib.PurePosixPath", "save its state_dict")
    saved(path, perturbed("resnet20s"))
    refused("CifarResNet", "save its state_dict")
    bad_input(lambda: models.load_peer(tmp_path, "resnet20s"), "is a folder")
    bad_input(lambda: models.load_peer(state, "resnet20"), "unknown architecture", "resnet20s")


def test_a_failed_load_names_three_keys_and_leaves_the_model_alone() -> None:
    model, other = perturbed("resnet20s"), perturbed("resnet56s").state_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message = bad_input(lambda: models.load_state(model, other), "resnet20s", "of resnet56s; give --arch resnet56s", "213 more")
    assert message.count("layer") == 3
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    wide = perturbed("resnet20s", 100)
    bad_input(lambda: models.load_state(model, wide.state_dict()), "another number of classes than the model's 10")
    bad_input(lambda: models.load_state(model, {**before, "fc.bias": 3}), "fc.bias is int instead of [10]")
    bad_input(lambda: models.load_state(model, [before]), "list")
    models.load_state(model, models.build("resnet20s", 10, MEAN, STD).state_dict())
    assert bool((model.bn1.weight == 1).all())


# ---------------------------------------------------------------------------------------- what others wrap weights in


def renamed(state: State, change: Callable[[str], str]) -> State:
    return {change(key): value for key, value in state.items()}


def profiled(state: State) -> State:
    """What thop leaves: counts of the whole model, and of modules at any depth."""
    counts = {f"{place}{kind}": torch.zeros(1, dtype=torch.float64) for place in ("", "layer1.0.conv1.", "fc.")
              for kind in ("total_ops", "total_params")}
    return {**state, **counts}


WRAPPED: dict[str, Callable[[State], Any]] = {
    "net, acc and epoch": lambda s: {"net": renamed(s, "module.{}".format), "acc": 91.2, "epoch": 182},
    "model": lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "model_state_dict": lambda s: {"epoch": 3, "model_state_dict": s, "loss": torch.zeros(())},
    "an unknown name": lambda s: {"acc": 91.2, "optimizer": {"state": {}, "param_groups": []}, "weights": s, "epoch": 7},
    "wrappers within wrappers": lambda s: {"model": {"state_dict": {"net": s}}},
    "another model beside it": lambda s: {"state_dict": s, "init_weight": renamed(s, "{}".format)},
    "a prefix": lambda s: renamed(s, "model.{}".format),
    "three prefixes": lambda s: renamed(s, "_orig_mod.model.module.net.{}".format),
    "inside of the names": lambda s: renamed(s, lambda k: k.replace("layer1", "layer1.module").replace("fc", "fc._orig_mod")),
    "normalisation beside the wrapped model": lambda s: renamed(s, lambda k: k if k.startswith("normalize") else f"model.{k}"),
    "a profiler's counts": profiled,
    "a profiler's counts in a wrapper": lambda s: {"state_dict": renamed(profiled(s), "module.{}".format)},
    "half precision": lambda s: {key: value.half() if key.startswith("fc") else value for key, value in s.items()},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_weights_are_read_out_of_what_others_wrap_them_in(case: str, tmp_path: Path) -> None:
    state = perturbed("resnet20s").state_dict()
    read, _ = models.load_peer(saved(tmp_path / "ckpt.pth", WRAPPED[case](state)), "resnet20s", num_classes=10)
    for key, value in read.state_dict().items():
        wanted = state[key].half().float() if case == "half precision" and key.startswith("fc") else state[key]
        assert torch.equal(value, wanted), key


def test_features_in_parallel_are_read() -> None:
    """DataParallel(features) alone, as in the ImageNet example of torch."""
    state = perturbed("vgg16_bn_lth").state_dict()
    read, _ = models.load_peer(renamed(state, lambda key: key.replace("features.", "features.module.")), "vgg16_bn_lth")
    assert all(torch.equal(value, state[key]) for key, value in read.state_dict().items())


NOT_WEIGHTS: dict[str, tuple[Callable[[State], Any], tuple[str, ...]]] = {
    "an optimiser alone": (lambda s: {"state": {0: {"momentum_buffer": s["fc.bias"]}}, "param_groups": [{"params": [0]}]},
                           ("state of an optimiser",)),
    "two dicts of tensors": (lambda s: {"student": s, "teacher": s, "epoch": 2}, ("student, teacher", "save the one")),
    "numbers": (lambda s: {"acc": 91.2, "epoch": 3}, ("acc is a float",)),
    "one name twice": (lambda s: {**s, "module.fc.bias": s["fc.bias"]}, ("fc.bias is there twice",)),
    "a mask": (lambda s: {key: torch.ones_like(value) for key, value in s.items() if key.endswith(("weight", "bias"))},
               ("it is a mask", "--path", "--checkpoint")),
    "a mask of bool": (lambda s: {key: torch.ones_like(value, dtype=torch.bool) for key, value in s.items()},
                       ("conv1.weight is bool instead of float32", "it is a mask")),
    "whole numbers": (lambda s: {**s, "conv1.weight": torch.full((16, 3, 3, 3), 3)}, ("is int64 instead of float32",)),
    "another of ours": (lambda s: perturbed("resnet32s").state_dict(), ("weights of resnet32s; give --arch resnet32s",)),
    "torchvision's ResNet": (lambda s: perturbed("resnet18", 1000, imagenet=True).state_dict(),
                             ("torchvision's resnet18; give --arch resnet18 --imagenet_arch",)),
    "torchvision's deeper ResNet": (lambda s: torchvision_state("resnext50_32x4d"), ("a ResNet of torchvision's form",)),
    "torchvision's transformer": (lambda s: torchvision_state("vit_b_32"),
                                  ("vision transformer of torchvision", "--arch torchvision:NAME")),
    "the deepest ResNet": (lambda s: torchvision_state("resnet101"), ("give --arch resnet101 --imagenet_arch",)),
    "our transformer": (lambda s: perturbed("vit").state_dict(), ("weights of vit; give --arch vit",)),
    "torchvision's DenseNet": (lambda s: torchvision_state("densenet121"), ("a DenseNet of torchvision",)),
    "a ResNet with shortcuts": (
        lambda s: renamed(perturbed("resnet18").state_dict(),
                          lambda key: key.replace("downsample", "shortcut").replace("fc.", "linear.")),
        ("`shortcut` and `linear`",)),
    "complex": (lambda s: {**s, "fc.bias": s["fc.bias"].to(torch.complex64)}, ("fc.bias is a tensor of complex numbers",)),
    "meta": (lambda s: {**s, "fc.bias": s["fc.bias"].to("meta")}, ("fc.bias is a tensor of the meta device",)),
    "sparse": (lambda s: {**s, "fc.weight": s["fc.weight"].to_sparse()}, ("fc.weight is a sparse tensor",)),
    "compressed rows": (lambda s: {**s, "fc.weight": s["fc.weight"].to_sparse_csr()}, ("fc.weight is a sparse tensor",)),
}


def torchvision_state(name: str) -> State:
    import torchvision

    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
    return {key: torch.full((), 0.5).expand(value.shape) for key, value in state.items()}


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("case", NOT_WEIGHTS)
def test_what_is_no_such_model_is_refused_by_its_true_cause(case: str, tmp_path: Path) -> None:
    change, words = NOT_WEIGHTS[case]
    content = change(perturbed("resnet20s").state_dict())
    bad_input(lambda: models.load_peer(content, "resnet20s", num_classes=10), *words)
    if "torchvision" not in case:
        path = saved(tmp_path / "ckpt.pth", content)
        bad_input(lambda: models.load_peer(path, "resnet20s", num_classes=10), str(path), *words)


def test_a_whole_pickled_model_is_told_from_other_objects(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", perturbed("resnet20s"))
    bad_input(lambda: models.load_peer(path, "resnet20s"), "a whole pickled model, of class models.resnet.CifarResNet")
    saved(path, {"args": pathlib.PurePosixPath("x")})
    message = bad_input(lambda: models.load_peer(path, "resnet20s"), "PurePosixPath")
    assert "whole pickled" not in message
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    bad_input(lambda: models.load_peer(fifo, "resnet20s"), "a pipe")
