"""Evaluate a model once: one forward pass per part, and every metric from the stored logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import models
from dataset import Data
from evaluation import mia, separation, tow
from evaluation.mia import DRAWS, FITS
from evaluation.predicted import outputs
from trainer import predict
from utils import BadInput, Config, Kept, Run, Runtime, hp, read_arrays, say

ASKED = 500  # training images that a bare file is asked about
PARTS = ("retain", "forget", "val", "test")
KEPT = Kept(2**26)  # bytes of outputs that an analysis holds for the next who asks for those of the same run
# metric -> (unit, healthy direction, meaning); the README's table
METRICS = {
    "forget": ("%", "as retrain's", "accuracy on the forget set"),
    "retain": ("%", "as retrain's", "accuracy on the retain set"),
    "val": ("%", "as retrain's", "accuracy on the validation split, which no stage trains on; over all classes"),
    "test": ("%", "as retrain's", "accuracy on the test set; of the remaining classes and sub-classes where whole ones are "
             "forgotten"),
    "test_all": ("%", "for information", "accuracy on the test set over all classes that were trained on"),
    "UA": ("%", "as retrain's", "unlearning accuracy, 100 - forget"),
    "RA": ("%", "as retrain's", "remaining accuracy, retain"),
    "TA": ("%", "as retrain's", "testing accuracy, test"),
    "MIA": ("%", "as retrain's", "MIA efficacy: share of the forget set that the confidence attack calls non-member, mean over "
            "draws (Monte-Carlo error in the record: `mia.error`); a value above retrain's is over-forgetting, not success"),
    "privacy": ("%", "50", "balanced accuracy of the confidence attack on held-out members and non-members"),
    "AUC_forget": ("%", "as retrain's", "ROC AUC of the confidence of the forget set (as members) against test images of the "
                   "same classes (sub-classes, where the forget set lacks some of its classes'), weighted to its proportions, "
                   "those forgotten whole among them; 50 = not to be told apart, above = still looks like a member, "
                   "below = over-forgotten"),
    "AUC_difference": ("points", "0", "AUC_forget minus retrain's"),
    "TPR@1%, TPR@0.1%": ("%", "as retrain's", "share of the forget set above a margin that at most 1 % (0.1 %) of these test "
                         "images exceed; the reason in its place where they are fewer than 1,000 (10,000)"),
    "KS_forget": ("%", "retrain against retrain", "Kolmogorov-Smirnov distance between the margins (log p - log(1 - p) of the "
                  "true class) of the forget set and those under retrain; sees over-forgetting, which ToW cannot"),
    "Avg. gap": ("points", "0", "mean |difference to retrain| over UA, RA, TA and MIA of single runs, mean over seeds"),
    "gap of means": ("points", "0", "the same of means over seeds, as published tables have it: smaller, since chance cancels"),
    "acc_low, acc_mid, acc_high": ("%", "as retrain's", "accuracy on the least, middle and most memorized part of the forget "
                                   "set (by ES: entangled), where scores cut it into groups"),
    "MIA_low, MIA_mid, MIA_high": ("%", "as retrain's", "share of that part which the confidence attack calls non-member; the "
                                   "same fits for all parts, those of MIA"),
    "ToW": ("0 to 1", "1", "product over forget, retain and test of 1 - |accuracy - retrain's|"),
    "ToW-MIA": ("0 to 1", "1", "ToW with the MIA efficacy in place of the forget accuracy"),
    "collapsed": ("reason", "none", "retain accuracy under 2/K at K classes (75 % at two), or a loss, weights or outputs that "
                  "are not finite: the model is broken, which is no forgetting; its ToW and gap stand in brackets"),
    "did_nothing": ("yes or no", "no", "of the record: the method left every weight within 1e-6 of its tensor's norm, so that "
                    "the outputs are the original's; raw, which is to do nothing, is none. `moved` is the largest such share"),
    "disagreement_forget, disagreement_test": ("%", "retrain against retrain", "share of the part on which the predicted class "
                                               "differs from retrain's"),
    "seconds": ("s", "low", "wall time of the method and of its saliency mask; evaluation is not in it, compilation under "
                "--compile is"),
    "seconds_scores": ("s", "low", "time of the scores that RUM and RUM^F refine by: the pool of models, or what recording "
                       "them added to the original's training; 0 for methods that need none. That the forget set itself was "
                       "chosen by scores does not count: it is the request, whichever method serves it"),
    "seconds_total": ("s", "low", "seconds + seconds_scores"),
    "speed_up": ("times", "high", "retrain's seconds over those of the method and its mask, where both ran on one kind of "
                 "machine; of raw there is none"),
    "images_read": ("%", "low", "images in the batches of the method and of its mask, each as often as it is read, in percent "
                    "of those that retrain reads: a cost that no machine changes"),
    "gap_val": ("points", "0", "mean |difference to retrain| over forget, retain and validation accuracy; as ToW_val"),
    "ToW_val": ("0 to 1", "1", "ToW with the validation split in place of the test set: no test image enters, so that "
                "settings may be chosen by it (`--best`)"),
}


def meaning_of(name: str) -> str:
    """Of a measure, from METRICS; "" of one that is not there."""
    return next((text for names, (_, _, text) in METRICS.items() if name in names.split(", ")), "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Config):
    """How membership is attacked; changing it re-reads the stored logits, no model runs again."""

    mia: str = hp("threshold", "rule on one-dimensional features: the exact best threshold or interval, or the published "
                  "RBF-SVC", choices=("threshold", "interval", "svc"), digest=False)
    mia_mode: str = hp("balanced", "members and non-members: a class-balanced draw with a held-out half, or the published "
                       "first ones of retain in order", choices=("balanced", "published"), digest=False)
    mia_draws: int = hp(DRAWS, "balanced draws of members and non-members that every number of the attack is a mean over",
                        low=1, high=1000, digest=False)
    mia_fits: int = hp(FITS, "the same of what is fitted by iteration (the probability vector; all under --mia svc); "
                       "never more than --mia_draws", low=1, high=1000, digest=False)


def check(data: Data, cfg: EvaluationConfig) -> None:
    """Refuse, before any training, a split on which the metrics that follow it cannot be computed (BadInput)."""
    test = data.test.y.cpu()
    left = test[torch.from_numpy(remaining({"test_labels": test.numpy()} | data.subclasses(), data.splits.whole_classes))]
    mia.check_labels(data.loader("retain").labels.cpu(), left, cfg.mia_mode)


def evaluate(model: nn.Module, data: Data, rt: Runtime, run: Run, cfg: EvaluationConfig) -> dict[str, Any]:
    """Predict retain, forget, val and test once, keep the logits in outputs.npz, and put all metrics into the record."""
    with run.timed(rt, "evaluate"):
        arrays = outputs(model, data, rt, run, [part for part in PARTS if len(data.index(part))]) | data.subclasses()
        metrics = summarise(arrays, data.splits.whole_classes, cfg, rt.cfg.seed)
        metrics["collapsed"] = broken(model, run) or metrics["collapsed"]
    run.save_arrays("outputs.npz", **arrays)
    run.result(metrics=metrics, collapsed=metrics["collapsed"] is not None, evaluation=dataclasses.asdict(cfg),
               whole_classes=data.splits.whole_classes, whole_subclasses=data.splits.whole_subclasses)
    return metrics


def broken(model: nn.Module, run: Run) -> str | None:
    """Why a model is broken whatever its accuracy: a diverged method, or weights that are not finite; else None."""
    if "diverged" in run.values:
        return run.values["diverged"]
    whole = all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())
    return None if whole else "weights are not finite"


def collapse(retain: float, classes: int, finite: bool = True) -> str | None:
    """Why a model of so many classes is no classifier any more, from its retain accuracy in %; None of one that works."""
    if not finite:
        return "outputs are not finite"
    return f"retain accuracy {retain:.2f} % is under {least(classes):.4g} %" if retain < least(classes) else None


def least(classes: int) -> float:
    """The accuracy (%) on its own training data under which a model counts as broken: twice chance."""
    return 100 * min(2 / classes, (1 + 1 / classes) / 2)  # at two classes 2/K would be every error


def standing(original: models.Original, facts: dict[str, Any], model: nn.Module, data: Data, rt: Runtime) -> dict[str, Any]:
    """What the record says of the original that a stage starts from; a model at chance on its own training data is said.

    The accuracy is that of its record; a bare file is asked about ``ASKED`` of its training images, evenly spread.

    Args:
        facts: of ``models.load_original``.

    Returns:
        The facts, ``accuracy`` (%) on its training data (a forgetting run's: on its retain set), and whether it is ``broken``,
        under twice chance.

    Raises:
        BadInput: a bare file's outputs are not finite.
    """
    known = original.record.get("metrics", {})
    value = known.get("train", known.get("retain"))
    if value is None:
        train = data.index("train")
        logits, labels = predict(model, data.subset(train[:: max(1, len(train) // ASKED)]), rt)
        if not torch.isfinite(logits).all():
            raise BadInput(f"{original.file}: the original itself is broken: its outputs are not finite; name another "
                           "--checkpoint")
        value = 100 * tow.accuracy(logits, labels)
    broken, classes = value < least(data.num_classes), data.num_classes
    if broken:
        advice = "train it longer" if original.record else "check --dataset, the order of its classes, --mean and --std"
        say(f"notice: the original {original.file} is broken already: right about {value:.2f} % of its own training images, "
            f"under {least(classes):.4g} % (chance is {100 / classes:.4g} %); {advice}")
    return facts | {"accuracy": round(value, 4), "broken": broken}


def evaluate_original(model: nn.Module, data: Data, rt: Runtime, run: Run) -> dict[str, Any]:
    """Accuracies (%) of an original model on train, val and test; its logits stay in outputs.npz for what starts from it."""
    with run.timed(rt, "evaluate"):
        parts = [part for part in ("train", "val", "test") if len(data.index(part))]
        arrays = outputs(model, data, rt, run, parts)
        sides = {part: outputs_of(arrays, part) for part in parts}
        metrics = {part: 100 * tow.accuracy(side.logits, side.labels) for part, side in sides.items()}
    run.save_arrays("outputs.npz", **arrays)
    run.result(metrics=metrics)
    return metrics


def refresh(run: Run, cfg: EvaluationConfig) -> dict[str, Any]:
    """The metrics of a finished run; under another attack than its record's, anew from the stored logits."""
    return metrics_of(run.folder, run.values, cfg)


def metrics_of(folder: Path, record: Mapping[str, Any], cfg: EvaluationConfig) -> dict[str, Any]:
    """A record's metrics under the given attack; anew where its own has other settings, as one of an older version has."""
    if record["evaluation"] == dataclasses.asdict(cfg):
        return record["metrics"]
    seed = record["settings"]["rt"]["seed"]
    found = summarise(load_outputs(folder), tuple(record["whole_classes"]), cfg, seed)
    # that the weights were not finite, or the method diverged, is no matter of the attack, and outputs need not tell it
    return found | {"collapsed": record["metrics"].get("collapsed", found["collapsed"])}


def load_outputs(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of outputs.npz: <part>_index, <part>_labels int64 [N], <part>_logits float32 [N, K].

    Those of ``Data.subclasses`` too, of a forget set of some sub-classes.
    """
    form = {f"{part}_{name}": shape for part in ("retain", "forget", "test") for name, shape in (
        ("index", ("iu", f"{part}")), ("labels", ("iu", f"{part}")), ("logits", ("f", f"{part} classes")))}
    path = folder / "outputs.npz"
    return KEPT.get(path, lambda: _whole(path, form, read_arrays(path, form)))


def _whole(path: Path, form: dict[str, Any], found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if "test_fine" not in found:
        return found
    return read_arrays(path, form | {"forget_fine": ("iu", "forget"), "test_fine": ("iu", "test"),
                                     "whole_subclasses": ("iu", "whole")})


def summarise(arrays: Mapping[str, np.ndarray], whole_classes: tuple[int, ...], cfg: EvaluationConfig,
              seed: int) -> dict[str, Any]:
    """Every metric of one model that needs no other model, in percent; None for those that its outputs do not allow.

    An output row that is not finite is a wrong answer; there is no attack on such a model.
    """
    parts = _parts(arrays, whole_classes)
    test_all = outputs_of(arrays, "test")
    found: dict[str, Any] = {part: of(o.logits, o.labels) for part, o in parts.items()}
    found["test_all"] = of(test_all.logits, test_all.labels)
    found |= {"UA": 100 - found["forget"], "RA": found["retain"], "TA": found["test"]}
    finite = all(bool(torch.isfinite(o.logits).all()) for o in (*parts.values(), test_all))
    found["collapsed"] = collapse(found["retain"], test_all.logits.shape[1], finite)
    if not finite:
        none = dict.fromkeys(("MIA", "privacy", "AUC_forget", *separation.LEVELS))
        return found | none | {"mia": {name: {} for name in ("forget", "privacy", "auc", "auc_forget")}}
    attack = mia.membership(parts["retain"], parts["test"], parts["forget"], **_attack(cfg, seed))
    kinds = (arrays["forget_fine"], arrays["test_fine"]) if "test_fine" in arrays else None
    apart = separation.forget_against_test(parts["forget"], test_all, kinds)
    attack["auc_forget"] = apart.pop("auc")
    percent = {name: _percent(attack[name]) for name in ("forget", "privacy", "auc", "auc_forget", "error")}
    return found | {"MIA": percent["forget"]["confidence"], "privacy": percent["privacy"]["confidence"],
                    "AUC_forget": percent["auc_forget"].get("confidence"), **_percent(apart), "mia": attack | percent}


def _percent(shares: Any) -> Any:
    """Shares in %, in dictionaries of dictionaries too; what is no number stays."""
    if isinstance(shares, dict):
        return {name: _percent(value) for name, value in shares.items()}
    return 100 * shares if isinstance(shares, float) else shares


def of(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Accuracy in %, of logits float [N, K] and labels int64 [N]; a row that is not finite is a wrong answer."""
    return 100 * tow.accuracy(logits.nan_to_num(), torch.where(torch.isfinite(logits).all(1), labels, -1))


def nonmembers(arrays: Mapping[str, np.ndarray], whole_classes: tuple[int, ...], cfg: EvaluationConfig,
               seed: int) -> np.ndarray:
    """In what share of draws the confidence attack calls each forget example a non-member, [N]; the mean is ``MIA``."""
    parts = _parts(arrays, whole_classes)
    return mia.nonmembers(parts["retain"], parts["test"], parts["forget"], **_attack(cfg, seed))


def _parts(arrays: Mapping[str, np.ndarray], whole_classes: tuple[int, ...]) -> dict[str, mia.Outputs]:
    """The outputs of each part that there is; the test set's without what is forgotten whole."""
    parts = {part: outputs_of(arrays, part) for part in PARTS if f"{part}_logits" in arrays}
    return parts | {"test": parts["test"].take(np.flatnonzero(remaining(arrays, whole_classes)))}


def outputs_of(arrays: Mapping[str, np.ndarray], part: str) -> mia.Outputs:
    """Logits and labels of a part, of the arrays of outputs.npz."""
    return mia.Outputs(torch.from_numpy(arrays[f"{part}_logits"]), torch.from_numpy(arrays[f"{part}_labels"]))


def _attack(cfg: EvaluationConfig, seed: int) -> dict[str, Any]:
    # the same members for every method of a seed
    return {"rule": cfg.mia, "mode": cfg.mia_mode, "count": cfg.mia_draws, "fits": cfg.mia_fits,
            "generator": np.random.default_rng([seed, 0x6D6961])}


def remaining(arrays: Mapping[str, np.ndarray], whole_classes: Sequence[int]) -> np.ndarray:
    """bool [N]: the test examples that count, which are those of classes, and sub-classes, that are not forgotten whole."""
    rows = ~np.isin(arrays["test_labels"], whole_classes)
    return rows & ~np.isin(arrays["test_fine"], arrays["whole_subclasses"]) if "test_fine" in arrays else rows


def line(metrics: Mapping[str, Any]) -> str:
    """One line for the screen."""
    names = ("train", "forget", "retain", "val", "test", "UA", "RA", "TA", "MIA")
    told = "  ".join(f"{name} {metrics[name]:.2f}" for name in names if metrics.get(name) is not None) + "  (%)"
    return told + (f"  collapsed: {metrics['collapsed']}" if metrics.get("collapsed") else "")
