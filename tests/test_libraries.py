"""Classifiers of torchvision and timm by --arch: parameters, logits against the library's own, files, errors, the stages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import shell
import torch
from shell import QUIET, call, only
from torch import nn
from torch.nn import functional as F

import arg_parser
import models
from models.adopt import start_from
from models.deep import deep_layers, outputs_of
from models.libraries import PLAIN, Borrowed, find
from utils import BadInput

HALF = ((0.5,) * 3, (0.25,) * 3)
SMALL = "torchvision:shufflenet_v2_x0_5"  # the quickest to build
timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
nowhere = pytest.fixture(autouse=True)(shell.nowhere)


def built(name: str, classes: int = 3, **more: int) -> Borrowed:
    torch.manual_seed(3)
    return models.build(name, classes, *HALF, **{"image_size": 32, **more})


@pytest.mark.parametrize("name", list(PLAIN))
def test_plain_names_have_the_parameters_of_the_table(name: str) -> None:
    """The published counts for 1000 classes, less 990 rows of the head; 768 features go into it in both."""
    published = {"swin_t": 28_288_354, "vit_b_16": 86_567_656}[name]
    with torch.device("meta"):
        import torchvision

        twin = getattr(torchvision.models, name)()
    assert sum(p.numel() for p in twin.parameters()) == published
    assert PLAIN[name][0] == published - 990 * 769
    assert find(name).args[0] == name and name in [row[0] for row in models.table()]


def test_a_small_swin_transformer_has_the_parameters_of_torchvisions_structure() -> None:
    model = built("swin_t", 3)
    assert sum(p.numel() for p in model.parameters()) == PLAIN["swin_t"][0] - 7 * 769
    assert model.input_size == 224 and model.head_name == "head"


@pytest.mark.parametrize("name", [SMALL, "torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small"])
def test_logits_are_the_librarys_on_resized_and_normalised_images(name: str) -> None:
    import torchvision

    model, x = built(name, 4, input_size=64).eval(), torch.rand(2, 3, 32, 32)
    twin = getattr(torchvision.models, name.partition(":")[2])(num_classes=4).eval()
    twin.load_state_dict({theirs: own for theirs, own in zip(twin.state_dict(), theirs_of(model), strict=True)})
    large = F.interpolate((x - 0.5) / 0.25, (64, 64), mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(model(x), twin(large))
        torch.testing.assert_close(model.classify(models.embed(model, x)), twin(large))
        folded = models.fold_batchnorm(model)
        torch.testing.assert_close(folded(x), twin(large))
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in one.modules()) for one in (model, folded)]
    assert norms[0] == norms[1]  # in a library the order of definition does not tell what follows a convolution


def theirs_of(model: Borrowed) -> list[torch.Tensor]:
    """Values in the order of the library, in which the head is last."""
    state = model.state_dict()
    return [value for name, value in state.items() if name.startswith("network.")] + [
        value for name, value in state.items() if name.startswith("head.")]


def test_images_are_resized_to_what_the_library_says_or_stay_as_they_are() -> None:
    sides = {name: find(name)(3, models.Normalize(*HALF), image_size=32, checked=True).input_size
             for name in (SMALL, "torchvision:squeezenet1_0", "torchvision:alexnet")}
    assert list(sides.values()) == [32, 32, 224]  # any side; any from 21 on; none below 63
    assert built("vit_b_16", input_size=32).network.encoder.pos_embedding.shape == (1, 5, 768)


@pytest.mark.parametrize("name", ["torchvision:googlenet"])
def test_outputs_beside_the_logits_are_left_out(name: str) -> None:
    model = built(name).train()
    assert model(torch.rand(4, 3, 32, 32)).shape == (4, 3)


@pytest.mark.parametrize(("name", "more", "words"), [
    ("torchvision:swin_tt", {}, ("no classifier", "'swin_t'")),
    ("vit_b_16", {"input_size": 30}, ("30 pixels", "--input_size, such as 224")),
    ("torchvision:alexnet", {"input_size": 32}, ("32 pixels", "224")),
    ("resnet18", {"input_size": 64}, ("--input_size 64", "takes images as they are")),
    pytest.param("timm:resnet19", {}, ("no classifier", "did you mean 'resnet"), marks=timm),
    pytest.param("timm:deit_tiny_distilled_patch16_224", {}, ("one layer at its end",), marks=timm)])
def test_what_a_library_cannot_make_is_one_line(name: str, more: dict[str, int], words: tuple[str, ...]) -> None:
    with pytest.raises(BadInput) as caught:
        built(name, **more)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_a_library_that_is_not_there_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    find.cache_clear()
    with pytest.raises(BadInput, match=r"needs timm, which is not installed; pip install 'timm>=1.0'"):
        find("timm:resnet18")
    find.cache_clear()


@timm
@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"])
def test_timms_transformers_get_another_head(name: str) -> None:
    model = find(name)(3, models.Normalize(*HALF), image_size=32, checked=True)
    width = {"timm:vit_tiny_patch16_224": 192, "timm:swin_tiny_patch4_window7_224": 768}[name]
    published = {"timm:vit_tiny_patch16_224": 5_717_416, "timm:swin_tiny_patch4_window7_224": 28_288_354}[name]
    assert model.input_size == 224 and model.head.weight.shape == (3, width)
    assert sum(p.numel() for p in model.parameters()) == published - 997 * (width + 1)


# ------------------------------------------------------------------------------------------------------- pretrained


def pretrained(path: Path, classes: int) -> dict[str, torch.Tensor]:
    """A file of the library, whose weights are at random."""
    import torchvision

    torch.manual_seed(9)
    twin = torchvision.models.shufflenet_v2_x0_5(num_classes=classes)
    torch.save({f"module.{name}": value for name, value in twin.state_dict().items()}, path)  # as DataParallel names them
    return twin.state_dict()


def test_pretrained_weights_are_all_of_the_file_but_another_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, model = pretrained(tmp_path / "w.pth", 1000), built(SMALL)
    head = model.head.weight.detach().clone()
    start_from(model, tmp_path / "w.pth")
    own = model.state_dict()
    assert all(torch.equal(own[f"network.{name}"], value) for name, value in state.items() if not name.startswith("fc."))
    assert torch.equal(model.head.weight, head) and "for 1000 classes and is left out" in capsys.readouterr().out
    state = pretrained(tmp_path / "w.pth", 3)
    start_from(model, tmp_path / "w.pth")
    assert torch.equal(model.head.weight, state["fc.weight"]) and not capsys.readouterr().out


def test_pretrained_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    pretrained(tmp_path / "w.pth", 3)
    with pytest.raises(BadInput, match="--pretrained .*do not fit resnet18") as caught:
        start_from(models.build("resnet18", 3, *HALF), tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="none.pth does not exist"):
        start_from(built(SMALL), tmp_path / "none.pth")


# ------------------------------------------------------------------------------------------------------- in the stages


def test_the_stages_go_on_with_a_librarys_network_from_its_record(tmp_path: Path) -> None:
    words = ["--dataset", "digits", "--classes", "0-1", "--batch_size", "64", "--epochs", "1", "--lr", "0.01"]
    pretrained(tmp_path / "w.pth", 1000)
    call("main_train.py", *words, "--arch", SMALL, "--input_size", "32", "--pretrained", tmp_path / "w.pth", save_dir=tmp_path)
    original = only(tmp_path, "train")
    content = torch.load(original.folder / "model.pt", weights_only=True)
    assert (content["arch"], content["input_size"]) == (SMALL, 32) and ":" not in original.folder.name
    for method in ("FT", "retrain"):
        shell.forget(original, tmp_path, method, *shell.FORGET)
    found = only(tmp_path, "forget", unlearn="FT")
    assert found.setting("arch") == SMALL and found.setting("input_size") == 32
    bare = (tmp_path / "bare.pt")
    bare.write_bytes((original.folder / "model.pt").read_bytes())
    with pytest.raises(SystemExit) as end:
        call("main_forget.py", *words[:6], "--arch", SMALL, "--input_size", "64", "--checkpoint", bare, "--unlearn", "FT",
             *shell.FORGET, save_dir=tmp_path)
    assert end.value.code == 2


def test_a_file_of_the_library_is_a_checkpoint(tmp_path: Path) -> None:
    pretrained(tmp_path / "w.pth", 2)
    call("main_forget.py", "--dataset", "digits", "--classes", "0-1", "--arch", SMALL, "--input_size", "32", "--checkpoint",
         tmp_path / "w.pth", "--unlearn", "raw", *shell.FORGET, save_dir=tmp_path)
    assert only(tmp_path, "forget").record["status"] == "done"


@pytest.mark.parametrize("arch", ["torchvision:swin_tt", "swin_q", "jax:resnet18"])
def test_an_unknown_name_ends_with_code_2(arch: str, capsys: pytest.CaptureFixture[str]) -> None:
    import main_train

    with pytest.raises(SystemExit) as end:
        main_train.main([*QUIET, "--dataset", "digits", "--arch", arch])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "swin_t" in error


# ------------------------------------------------------------------------------------------------------- layers by name


def test_deep_layers_are_modules_that_are_called_once_with_a_row_for_each_image() -> None:
    """A Swin transformer's windows stand in the batch's place, and its linear layers are not called as modules."""
    model = find("swin_t")(3, models.Normalize(*HALF), image_size=32, input_size=32, checked=True).eval()
    names = deep_layers(model)
    assert not any(module._forward_hooks for module in model.modules())
    with outputs_of(model, names) as seen:
        model(torch.rand(3, 3, 32, 32))
    assert len(set(names)) == 3 and all(len(seen[name]) == 3 for name in names)
    assert isinstance(dict(model.named_modules())[names[-1]], nn.Module)


def test_pretrained_weights_are_told_idle_where_no_network_is_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the weights of a file without a record; retrain begins anew, and takes them."""
    torch.save(models.build("resnet8s", 10, (0.5,) * 3, (0.25,) * 3).state_dict(), tmp_path / "bare.pt")
    told = "--pretrained has no effect: no network is begun anew here"
    for method, idle in (("FT", True), ("retrain", False)):
        arg_parser.parse("forget", ["--dataset", "digits", "--arch", "resnet8s", "--checkpoint", str(tmp_path / "bare.pt"),
                                    "--pretrained", str(tmp_path / "bare.pt"), "--unlearn", method, "--forget_fraction", "0.1"])
        assert (told in capsys.readouterr().out) == idle
