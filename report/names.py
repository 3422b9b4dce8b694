"""What a person reads for a setting: what differs between the settings at hand; hashes stand in small print."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from report.pairs import Pair
from report.settings import Setting

DATA = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "cifar20": "CIFAR-20", "svhn": "SVHN", "imagenet64": "ImageNet-64",
        "TinyImagenet": "TinyImageNet"}
ARCH = re.compile(r"(resnet|vgg)(\d+)(s|_bn|_bn_lth)?$")
WIDE = re.compile(r"wrn_(\d+)_(\d+)$")
NETWORKS = {"vit": "ViT (small)", "allcnn": "All-CNN-C", "swin_t": "Swin-T", "vit_b_16": "ViT-B/16"}
FAMILY = {"resnet": "ResNet", "vgg": "VGG"}
BETWEEN = " · "


class Heading(NamedTuple):
    """text: of a setting, as short as its neighbours allow; small: what else it is, its hashes among it."""

    text: str
    small: str


def architecture(name: str) -> str:
    """``ResNet-20`` for ``resnet20s``: the CIFAR networks' depths are no others' depths."""
    library, colon, own = name.partition(":")
    if colon:  # another network than ours of this name
        return f"{architecture(own)} ({library})"
    if wide := WIDE.match(name):
        return f"WRN-{wide[1]}-{wide[2]}"
    if name in NETWORKS:
        return NETWORKS[name]
    found = ARCH.match(name)
    return f"{FAMILY[found[1]]}-{found[2]}{' (LTH)' if name.endswith('lth') else ''}" if found else name


def network(place: Setting) -> str:
    """Data set and network, and how much of it was pruned: ``CIFAR-10 · ResNet-18 · 95 % pruned``."""
    return told(place.network)


def told(named: str) -> str:
    """The same of ``cifar10 resnet18 95 % pruned``."""
    data, arch, *rest = named.split(" ", 2)
    return BETWEEN.join([DATA.get(data, data), architecture(arch), *rest])


def joined(place: Setting, *more: str) -> str:
    """The network, what tells its training and its retrain's from others', and what else is to be said."""
    trained = [f"trained with {place.trained}"] if place.trained else []
    return BETWEEN.join([network(place), *more, *trained, *([f"against {place.reference}"] if place.reference else [])])


def forget_set(place: Setting, whole: int | None) -> str:
    """``random 130 of 1,294``, ``class 8 (131 of 1,294)``, ``high 1,000 of 45,000 by memorization``; whole: of how many."""
    size = f"{place.size:,}" + (f" of {whole:,}" if whole else "")
    if place.group:
        named = place.group if not place.group.startswith("chunk") else f"{place.group},"
        score = "chunks of entanglement" if place.score == "es chunks" else place.score
        return f"{named} {size} by {score}"
    if place.drawn:
        kind, among = place.drawn.split()[1], place.drawn.partition(" images of ")[2]
        return f"{kind} {size}" + (f", of {among}" if among else "")
    if place.what.startswith(("class", "sub-class")):
        return f"{place.what.split(' (')[0]} ({size})"
    return f"{size} chosen"


def headings(members: Mapping[str, list[Pair]]) -> dict[str, Heading]:
    """Setting's label -> heading.

    Args:
        members: label -> the runs under it.
    """
    texts = {label: _text(pairs[0]) for label, pairs in members.items()}
    for tell in (_seeds_of_the_choice, _tag):
        texts = _told_apart(texts, {label: tell(pairs[0]) for label, pairs in members.items()})
    return {label: Heading(text, _small(members[label][0].setting)) for label, text in texts.items()}


def _text(pair: Pair) -> str:
    place = pair.setting
    text = joined(place, forget_set(place, pair.run.record.get("train_size")))
    return BETWEEN.join([text, *([f"request {place.request}"] if place.request else [])])


def _seeds_of_the_choice(pair: Pair) -> dict[str, str]:
    return {name: str(pair.run.setting(f"{name}_seed")) for name in ("split", "val")}


def _tag(pair: Pair) -> dict[str, str]:
    return {"": pair.setting.tag}


def _told_apart(texts: dict[str, str], facts: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The same texts, and of those that are equal the facts by which they differ."""
    counts, found = Counter(texts.values()), {}
    for label, text in texts.items():
        mates = [other for other in texts if texts[other] == text]
        differ = [name for name in facts[label] if len({facts[mate][name] for mate in mates}) > 1]
        told = [f"{name} seed {facts[label][name]}" if name else facts[label][name] for name in differ]
        found[label] = BETWEEN.join([text, *told]) if counts[text] > 1 else text
    return found


def _small(place: Setting) -> str:
    return f"forget set {place.key}, data {place.data[:6]}, original's training {place.origin}; in the CSV: {place.label}"


def merged(pairs: Iterable[Pair], requests: int) -> Heading:
    """Of a table over several requests that were drawn in one way."""
    first = next(iter(pairs))
    return Heading(f"{_text(first)} · {requests} requests", f"data {first.setting.data[:6]}, original's training "
                   f"{first.setting.origin}; the mean over the seeds of each request is one value")
