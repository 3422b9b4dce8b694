"""Image classifiers by name: build, embed, fold, and read the published checkpoints.

    model = models.build("resnet18", 10, mean, std, image_size=32)
    logits = model(images)                 # images float [B, 3, H, W] in [0, 1]; the model normalises
    features = models.embed(model, images)
    model, mask = models.load_peer("0model_SA_best.pth.tar", "resnet18")
"""

from models.files import ModelConfig, about, load, new, save
from models.layers import Classifier, Normalize, embed, fold_batchnorm
from models.originals import Original, check_whole, find_original, load_original, locate, record_inside, whereabouts
from models.peer import infer_num_classes, load_peer, load_state, read_safely
from models.registry import ARCHS, Arch, build, build_empty, table

__all__ = [
    "ARCHS",
    "Arch",
    "Classifier",
    "ModelConfig",
    "Normalize",
    "Original",
    "about",
    "build",
    "build_empty",
    "check_whole",
    "embed",
    "find_original",
    "fold_batchnorm",
    "infer_num_classes",
    "load",
    "load_original",
    "load_peer",
    "load_state",
    "locate",
    "new",
    "read_safely",
    "record_inside",
    "save",
    "table",
    "whereabouts",
]
