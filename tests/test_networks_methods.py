"""Every unlearning method on a ResNet, a VGG, a ViT and a Swin transformer: finite weights, or a refusal in one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from conftest import TOY, quiet_runtime, toy_arrays
from torch import nn

from dataset import Data, Images, Splits
from models import Normalize, build
from models.libraries import Borrowed
from models.vit import ViT
from pruner import magnitude, synflow
from pruner.mask import largest
from pruner.plan import Plan, PruneConfig
from unlearn import METHODS
from unlearn.saliency import saliency
from utils import BadInput

__all__: list[str] = []
