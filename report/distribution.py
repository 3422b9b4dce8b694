"""How the forgotten points lie among the others under the original, retrain and every unlearned model: tables, pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evaluation import statistics
from evaluation.distribution import METRICS
from evaluation.statistics import Number
from report import draw, folders
from report.clouds import Cloud, Clouds
from report.embedded import FEATURES, OWN, PLACE, SPACES, TSNE, Asked
from report.lineup import METHOD, NEVER_SEEN, RETRAIN, Entry, Looker, Space, entries_of
from report.names import Heading, headings
from report.output import CAPTIONS, Extra, Written, captions_of, files_of
from report.pairs import Pair, RunsConfig, gather
from report.table import Cell, Line, Part, Table, markdown
from utils import Runtime, RuntimeConfig, hp

NAME = "distribution"
# of the screen; the CSV has all
COLUMNS = {OWN: ("variance", "relative_variance", "silhouette", "silhouette_all", "overlap"),
           TSNE: ("variance", "silhouette", "silhouette_all", "overlap", "overlap_raw")}
HEADS = {"relative_variance": "relative", "silhouette_all": "among all", "overlap_raw": "raw sum"}
SPREADS = ("variance", "relative_variance", "between", "overlap_raw")  # of no upper end
SPACE = {OWN: "in their own space", TSNE: "in a t-SNE plane"}
WORDS = {"penultimate": "penultimate features", "logits": "logits"}
MOST = 16  # panels of a picture
HEALTHY = ("Healthy is what retrain has, not a value by itself: a model that never saw them scatters the points (high "
           "variance) among those of other classes (low silhouette, high overlap); where they still lie together and apart, "
           "they have left a trace.")

UNITS = ("A variance is in squared units of its space, and every model has a space of its own: what may be compared between "
         "models is the relative one, over the mean variance of the other classes.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributionConfig(RunsConfig):
    """Which finished runs to compare, and what is measured of them; a filter that is not given does not filter."""

    features: tuple[str, ...] = hp(FEATURES, "of the points: what enters the last layer, and what leaves it", choices=FEATURES)
    space: tuple[str, ...] = hp(SPACES, "where they are measured: in the space of the features itself (own), in a t-SNE plane",
                                choices=SPACES)
    tsne_points: int = hp(7500, "points of a t-SNE plane, the same images for every model: the forgotten ones, up to half of "
                          "these, and a random draw of each other class", low=20)
    tsne_seed: int = hp(42, "owns that draw and the planes", low=0, high=2**32 - 1)
    perplexity: float = hp(30.0, "of t-SNE: about how many neighbours a point has", above=1)
    data: str | None = hp(None, "folder with the data set's files (default: where the runs found them)")
    device: str = hp("auto", "where the models compute their features", choices=("auto", "cpu", "cuda"))

    @property
    def kept(self) -> Path:
        """Folder of numbers and planes for the next analysis."""
        return (Path(self.out) if self.out is not None else Path(self.save_dir) / "analysis") / PLACE

    @property
    def asked(self) -> Asked:
        every = {"features": FEATURES, "space": SPACES}  # in one order, however they were typed
        features, spaces = (tuple(one for one in known if one in getattr(self, name)) for name, known in every.items())
        return Asked(features, spaces, self.tsne_points, self.tsne_seed, self.perplexity)


def write(cfg: DistributionConfig) -> Written:
    """Tables and pictures of the runs that pass the filters, as files; none where no run has a retrain.

    Raises:
        BadInput: no run passes; the data are not here, or are others than the models were trained on.
    """
    found = gather(cfg)
    if not found.pairs:
        return Written("\n".join([*found.notes, "no run has its retrain, so nothing was compared or written"]), False)
    # tf32 and bf16 would round differences between models away
    rt = Runtime(RuntimeConfig(device=cfg.device, precision="fp32", deterministic=True, progress=False))
    entries = entries_of(found.pairs, Path(cfg.save_dir))
    lost = Looker(cfg.asked, cfg.kept, rt, cfg.data).all(entries)
    extras = tables(cfg, entries, found.pairs)
    files = {name: content for extra in extras for name, content in files_of(extra, cfg.venue).items()}
    if cfg.venue != draw.NONE and any(extra.figures for extra in extras):
        files[f"{NAME}_{CAPTIONS}"] = captions_of(extras)
    folders.keep(cfg.folder, NAME, files)
    texts = [markdown(extra.parts) for extra in extras if extra.parts]
    notes = [*found.notes, *(f"passed over: {why}" for why in lost)]
    text = "\n".join([*texts, *notes, f"{cfg.folder}: {', '.join(files)}"])
    return Written(text, cfg.partial or (found.whole and not lost))


def tables(cfg: DistributionConfig, entries: list[Entry], pairs: Iterable[Pair]) -> list[Extra]:
    """The table with its pictures and all numbers, and the means over seeds."""
    members: dict[str, list[Pair]] = {}
    for pair in pairs:
        members.setdefault(pair.setting.label, []).append(pair)
    told, parts, figures, asked = headings(members), [], {}, cfg.asked
    spaces = [(name, space) for name in asked.features for space in asked.spaces]
    for setting, there in members.items():
        own = [entry for entry in entries if entry.setting == setting and entry.seen]
        if not own:
            continue
        tag = there[0].setting.tag
        parts.append(Part(told[setting], tuple(table_of(own, space) for space in spaces), (HEALTHY,), tag))
        for name in asked.features if TSNE in asked.spaces else ():
            if (chart := picture(own, name, told[setting], cfg)) is not None:
                figures[f"{NAME}_{name}" if len(members) == 1 else f"{NAME}_{name}-{tag}"] = chart
    return [Extra(NAME, tuple(parts), csv_of(entries, spaces), figures),
            Extra(f"{NAME}_means", (), means_of(entries, spaces), {})]


# ----------------------------------------------------------------------------------------------------------------- numbers


def domain_of(measure: str) -> statistics.Domain:
    """Least and largest value that a measure can have."""
    if measure in SPREADS:
        return 0.0, math.inf
    return (0.0, 1.0) if measure == "overlap" else (-1.0, 1.0)


def number_of(entry: Entry, space: Space, measure: str) -> Number | None:
    """The mean over seeds with its interval; None where a seed lacks the measure: a mean over others is no neighbour of it."""
    values = entry.values(space, measure)
    return statistics.interval(list(values.values()), domain_of(measure)) if values and len(values) == len(entry.seen) else None


def from_retrain(entry: Entry, retrain: Entry | None, space: Space, measure: str) -> statistics.Paired | None:
    """What is left of the measure when retrain's is taken off, seed by seed; None of retrain itself, and without it."""
    if retrain is None or entry is retrain:
        return None
    found = statistics.differences(entry.values(space, measure), retrain.values(space, measure))
    return statistics.paired(list(found.values())) if found else None


def retrain_of(entries: Iterable[Entry], setting: str) -> Entry | None:
    return next((entry for entry in entries if entry.setting == setting and entry.role == RETRAIN), None)


# ------------------------------------------------------------------------------------------------------------------ tables


def table_of(own: list[Entry], space: Space) -> Table:
    """The measures of one kind of features in one space; own: the models of one setting, as they are shown."""
    retrain = retrain_of(own, own[0].setting)
    columns = [name for name in COLUMNS[space[1]] if any(number_of(entry, space, name) for entry in own)]
    lines = []
    for entry in own:
        cells = [_cell(number_of(entry, space, name), from_retrain(entry, retrain, space, name), name) for name in columns]
        lines.append(Line((Cell(entry.method), Cell(str(len(entry.seen)), len(entry.seen)), *cells),
                          anchor=entry.role not in (METHOD, NEVER_SEEN)))
    title = f"{WORDS[space[0]].capitalize()} {SPACE[space[1]]}{_sampled(own, space)}; in brackets the difference to retrain"
    seeds = max(len(entry.seen) for entry in own)
    title += "; mean over n training seeds, ± the longer half of the 95 % t-interval" if seeds > 1 else "; one seed"
    about = {HEADS.get(name, name): METRICS[name][2] for name in columns}
    notes = [UNITS] if space[1] == OWN else []
    if any(entry.role == NEVER_SEEN for entry in own):
        notes.append(f"Never seen: the mean over what the original was not trained on ({', '.join(_groups(own))}), each among "
                     "the retained.")
    return Table(f"{title}.", ("method", "n", *(HEADS.get(name, name) for name in columns)), tuple(lines), tuple(notes), about)


def _groups(own: list[Entry]) -> list[str]:
    return list(dict.fromkeys(group for entry in own if entry.role == NEVER_SEEN for seen in entry.seen.values()
                              for group, *_ in seen.numbers))


def _sampled(own: list[Entry], space: Space) -> str:
    """How many of the points were taken."""
    seen = own[0].seen[min(own[0].seen)]
    there = len(seen.taken[space])
    return f" of {there:,} of {seen.points:,} points" if there < seen.points else f" of all {there:,} points"


def _cell(number: Number | None, apart: statistics.Paired | None, measure: str) -> Cell:
    if number is None:
        return Cell("-")
    half = None if number.ends is None else max(number.mean - number.ends[0], number.ends[1] - number.mean)
    told = _digits(number.mean, measure) + ("" if half is None else f" ±{_digits(half, measure)}")
    return Cell(told if apart is None else f"{told} ({_digits(apart.mean, measure, '+')})", number.mean)


def _digits(value: float, measure: str, sign: str = "") -> str:
    """Three decimals of what lies between -1 and 1; of the others three digits at least."""
    places = max(0, 2 - math.floor(math.log10(abs(value)))) if measure in SPREADS and value else 3
    return f"{value:{sign}.{min(places, 6)}f}"


def csv_of(entries: list[Entry], spaces: list[Space]) -> list[list[Any]]:
    """A line a model, group of points and space: every number, in full."""
    names = [*METRICS, "overlap_error"]
    lines: list[list[Any]] = [["setting", "method", "seed", "group", "features", "space", "points", *names, "model"]]
    for entry in entries:
        for seed, seen in sorted(entry.seen.items()):
            for space in spaces:
                for group, numbers in entry.by_group(seed, space).items():
                    lines.append([entry.setting, entry.method, seed, group, *space, len(seen.taken[space]),
                                  *(numbers.get(name) for name in names), str(entry.jobs[seed].file)])
    return lines


def means_of(entries: list[Entry], spaces: list[Space]) -> list[list[Any]]:
    """A line a method and space: of each measure the mean over seeds, the ends of its interval, and the same of the
    difference to retrain."""
    heads = [f"{name}{end}" for name in METRICS for end in ("", "_low", "_high", "_from_retrain", "_from_retrain_low",
                                                            "_from_retrain_high")]
    lines: list[list[Any]] = [["setting", "method", "features", "space", "n", "seeds", *heads]]
    for entry in entries:
        retrain = retrain_of(entries, entry.setting)
        for space in spaces if entry.seen else ():
            cells: list[float | None] = []
            for name in METRICS:
                number, apart = number_of(entry, space, name), from_retrain(entry, retrain, space, name)
                for found in (number, apart):
                    cells += [None] * 3 if found is None else [found.mean, *(found.ends or (None, None))]
            seeds = " ".join(map(str, sorted(entry.seen)))
            lines.append([entry.setting, entry.method, *space, len(entry.seen), seeds, *cells])
    return lines


# ---------------------------------------------------------------------------------------------------------------- pictures


def picture(own: list[Entry], features: str, heading: Heading, cfg: DistributionConfig) -> Clouds | None:
    """The planes of all models of a setting, side by side, of the first seed that retrain has; None without a plane."""
    retrain, space = retrain_of(own, own[0].setting), (features, TSNE)
    seeds = sorted(retrain.seen if retrain is not None else own[0].seen)
    shown = [entry for entry in own if seeds[:1] and seeds[0] in entry.seen and features in entry.seen[seeds[0]].planes]
    if not shown:
        return None
    panels = []
    for entry in shown[:MOST]:
        seen = entry.seen[seeds[0]]
        taken = seen.taken[space]
        panels.append(Cloud(entry.method, seen.planes[features], seen.labels[taken], seen.marked[taken]))
    count, marked = len(panels[0].points), int(panels[0].marked.sum())
    more = f" {len(shown) - MOST} more methods are in the table." if len(shown) > MOST else ""
    more += " Never seen: black is what the original was not trained on." if shown[-1].role == NEVER_SEEN else ""
    caption = (f"t-SNE of the {WORDS[features]} of the same {count:,} training images under each model, seed {seeds[0]} "
               f"(perplexity {cfg.perplexity:g}, seed of the planes {cfg.tsne_seed}): black the {marked:,} forgotten ones, the "
               f"others in the colours of their classes. Planes are turned and scaled at will: only what lies together and "
               f"apart is to be read.{more} {HEALTHY}")
    return Clouds(heading.text, tuple(panels), "forgotten", f"t-SNE of {WORDS[features]}; read each beside retrain", caption)
