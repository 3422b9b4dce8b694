"""Command lines generated from settings, one per stage; the only user of argparse.

``@entry("forget")`` on a main's ``main(args)`` gives ``main(argv=None)``: it parses, resolves what was not typed from
the protocol, the method and the original's record, and turns BadInput into exit code 2 with one line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import functools
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import calibration
import commands
import dataset
import groups as grouping
import processes
import setups
import stages
from sources.scores import find_scores
from stages import CHOOSERS, STAGES
from unlearn import over
from utils import ALONE, BadInput, Config, Ranks, Saved, as_line, put, say, sha256, shown
from utils.signals import Terminated, exit_code, no_more, terminable

# what the system says of a path that is not ours, or that cannot be one; anything else is a fault of this suite
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR)


class _Parser(argparse.ArgumentParser):
    ranks = ALONE

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: error: {as_line(message)}\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        if self.ranks.speaks():
            put(message, file or sys.stderr)


def entry(stage: str, about: str) -> Callable[[Callable[[SimpleNamespace], None]], Callable[..., None]]:
    """Make ``main(argv=None)`` of ``main(args)``; ``about`` is the help's text, the main's own docstring."""

    def wrap(main: Callable[[SimpleNamespace], None]) -> Callable[..., None]:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> None:
            parser = _Parser(prog=STAGES[stage][0], description=about, allow_abbrev=False,
                             formatter_class=argparse.RawDescriptionHelpFormatter)
            words, ending = sys.argv[1:] if argv is None else argv, None
            try:
                with terminable() if argv is None else contextlib.nullcontext():
                    parser.ranks = Ranks.of_environment()
                    processes.work(stage, parser.ranks, lambda: parse(stage, words, parser), main, parser)
            except BadInput as error:
                parser.error(commands.told(error))
            except OSError as error:  # such as a folder that a path leads through, and that is not ours to read
                if error.errno not in REFUSED or error.filename is None:
                    raise
                parser.error(f"{error.filename}: {error.strerror}; name another file or folder, or get the right to this one")
            except torch.OutOfMemoryError as error:  # the first sentences; the others list what is allocated
                parser.error(f"{str(error).split('. GPU')[0]}; use a smaller --batch_size (of a pool: --pool_batch), or leave "
                             "the GPU to this run alone; what was saved stays, and the same command goes on from there")
            except KeyboardInterrupt as stop:
                if argv is not None:  # a caller in Python wants the exception
                    raise
                no_more()
                ending = exit_code(stop), f"{parser.prog}: {stopped(stage, words, stop)}\n"
            if ending is not None:  # out here, where the exception is gone and with it all that its frames held, as threads
                parser.exit(*ending)

        return run

    return wrap


def stopped(stage: str, words: Sequence[str], stop: KeyboardInterrupt) -> str:
    """What happened, and how to go on."""
    by = "SIGTERM" if isinstance(stop, Terminated) else "Ctrl-C"
    same = "the same command without --force" if "--force" in words else "the same command"
    return f"stopped by {by}; {same} {'goes on where it was saved last' if 'run' in STAGES[stage][1] else 'does it anew'}"


def parse(stage: str, argv: Sequence[str], parser: argparse.ArgumentParser | None = None) -> SimpleNamespace:
    """Settings of a stage from its command line: typed, else the original's record, the method's, the protocol's."""
    parser = parser or _Parser(prog=STAGES[stage][0], allow_abbrev=False)
    given = [token.partition("=")[0] for token in argv]
    argv = stages.spelled(stage, argv)
    chooser = next((group for group in CHOOSERS if group in STAGES[stage][1]), None)
    if chooser is not None and "--list" in argv:
        say(stages.listing(stage))
        parser.exit(0)
    groups, chosen = stages.chosen(stage, _choice(stage, chooser, argv))
    if chooser == "method" and chosen is None and "plan" not in groups and not {"-h", "--help"} & set(argv):
        raise BadInput(f"--unlearn METHOD is missing; known: {', '.join(stages.allowed(stage))}")
    argv = stages.without(argv, stages.idle_in(groups))
    typed = setups.completed(_typed(parser, groups, stages.joined(argv, _forms(stage, groups)), stage), groups)
    kinds = {"class_to_replace", "subclass_to_replace"}
    if stage == "forget" and "--mask" in given and "num_indexes_to_replace" in typed and not kinds & typed.keys():
        say("notice: random forgetting over all classes; the published sparsity lines mean --class_to_replace 0")
    values, parent = _resolve(stage, groups, typed, given)
    configs = {group: _made(stage, group, config, values[group]) for group, config in groups.items()}
    idle = stages.idle_beside(configs, typed)
    if "pretrained" in typed and parent is not None and not getattr(chosen, "fresh", False):
        idle["pretrained"] = "no network is begun anew here, the weights are those of the original"
    for flag, why in idle.items():
        say(f"notice: --{flag} has no effect: {why}")
    if "rt" in configs:
        network = calibration.network_of(configs["model"], configs["data"].dataset)
        configs["rt"] = calibration.settled(configs["rt"], network)
    args = SimpleNamespace(**configs, stage=stage, original=parent, entry=chosen)
    args.settings = {k: v for k, v in configs.items() if k not in ("run", "parent", "setup")}
    if "data" in groups:
        named = [getattr(chosen, "label", chosen.name)] if chosen else []
        words = [args.data.dataset, args.model.label, *named, f"s{args.rt.seed}"]
        args.label = "-".join(words)
        args.identity = {"parent": parent.facts()} if parent else {}
    if "plant" in groups:
        args.training = stages.planting(values, args.protocol.protocol)
    if "mask" in groups:
        args.mask.check(chosen, typed)
    return args


def _made(stage: str, group: str, config: type[Config], values: dict[str, Any]) -> Config:
    with _under_its_flag(stage, group, values):
        return config(**values)


@contextlib.contextmanager
def _under_its_flag(stage: str, group: str, names: Iterable[str]) -> Iterator[None]:
    """What is wrong with a setting is told under its flag in this stage."""
    try:
        yield
    except BadInput as error:
        text = str(error)
        for name in names:
            text = text.replace(f"--{name} ", f"--{stages.flag_of(stage, group, name)} ")
        raise BadInput(text) from None


def _choice(stage: str, chooser: str | None, argv: list[str]) -> str | None:
    """The method or score that the command line names, else the one that is chosen by default."""
    if chooser is None:
        return None
    flag = CHOOSERS[chooser][0]
    default = next(field.default for field in dataclasses.fields(STAGES[stage][1][chooser]) if field.name == flag)
    return stages.peek(argv, flag) or default


def _typed(parser: argparse.ArgumentParser, groups: dict[str, type[Config]], argv: list[str], stage: str) -> dict[str, Any]:
    """What the command line says, and nothing else: no default enters here."""
    seen: set[str] = set()
    for group, config in groups.items():
        title = group if group != "cfg" else config.__name__
        box = parser.add_argument_group(title, (config.__doc__ or "").strip().splitlines()[0])
        for field in dataclasses.fields(config):
            flag = stages.flag_of(stage, group, field.name)
            if flag not in seen:
                add_flag(box, config, field, flag)
            seen.add(flag)
    for flag in [CHOOSERS[group][0] for group in CHOOSERS if group in groups]:
        parser.add_argument("--list", action="store_true", default=argparse.SUPPRESS, help="print what there is and stop")
        parser.epilog = f"{', '.join(stages.allowed(stage))}; with --{flag} NAME, --help shows the flags of that one"
    found, unknown = parser.parse_known_args(argv)
    for token in unknown:
        _unknown_flag(parser, token, groups, stage)
    return vars(found)


def _unknown_flag(parser: argparse.ArgumentParser, token: str, groups: dict[str, type[Config]], stage: str) -> None:
    name = token[2:].partition("=")[0] if token.startswith("--") else ""
    for registry in [CHOOSERS[group][1] for group in CHOOSERS if group in groups and name]:
        owners = [n for n in registry.names()
                  if name in {stages.flag_of(stage, "cfg", f.name) for f in dataclasses.fields(registry[n].config)}]
        owners += ["NAME_our"] if registry is CHOOSERS["method"][1] and name in over.FLAGS else []
        if owners:
            raise BadInput(f"--{name} is no flag of this {registry.kind.split()[-1]}; it belongs to {', '.join(owners)}")
    others = [STAGES[other][0] for other in STAGES if name and name in stages.flags_of(other)]
    if others:
        raise BadInput(f"--{name} is no flag of {parser.prog}; it belongs to {', '.join(others)}")
    raise BadInput(f"unknown argument {shown(token)}; {parser.prog} --help lists the flags")


def kind_of(hint: Any) -> tuple[type, bool]:
    """(item type, is a list) of a settings field's annotation, None aside."""
    options = [a for a in typing.get_args(hint) if a is not type(None)]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = options[0]
    many = typing.get_origin(hint) is tuple
    return (typing.get_args(hint)[0] if many else hint), many


_hints = functools.cache(typing.get_type_hints)  # of a class; slow, and asked for at every flag


def add_flag(box: Any, config: type[Config], field: dataclasses.Field, flag: str) -> None:
    """One argparse flag (two for a bool) for a settings field; without a default, so that only typed values arrive."""
    kind, many = kind_of(_hints(config)[field.name])
    shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    text = field.metadata["help"] + ("" if field.default is None else f" (default: {shown})")
    text = text.replace("%", "%%")
    common = {"dest": flag, "default": argparse.SUPPRESS}
    if kind is bool:
        box.add_argument(f"--{flag}", action="store_true", help=text, **common)
        box.add_argument(f"--no_{flag}", action="store_false", help=argparse.SUPPRESS, **common)
        return
    choices = field.metadata["choices"]
    metavar = "{" + ",".join(choices) + "}" if choices else ("N" if kind is int else "X" if kind is float else "TEXT")
    metavar = "N,.." if issubclass(kind, tuple) else metavar
    convert = functools.partial(_items, kind) if many else functools.partial(_item, kind)
    box.add_argument(f"--{flag}", type=convert, metavar=f"{metavar},.." if many else metavar, help=text, **common)


def _forms(stage: str, groups: dict[str, type[Config]]) -> dict[str, tuple[type, bool]]:
    """(item type, is a list) of every flag."""
    hints = {group: _hints(config) for group, config in groups.items()}
    found = {stages.flag_of(stage, group, field.name): kind_of(hints[group][field.name])
             for group, config in groups.items() for field in dataclasses.fields(config)}
    return {flag: (kind, many or issubclass(kind, tuple)) for flag, (kind, many) in found.items()}


def _item(kind: type, text: str) -> Any:
    try:
        return kind(text)
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except ValueError:
        what = {int: "a whole number", float: "a number"}[kind]
        raise argparse.ArgumentTypeError(f"takes {what}; got {shown(text)}") from None


def _items(kind: type, text: str) -> tuple[Any, ...]:
    parts = text.strip("[]").split(",")
    if not all(part.strip() for part in parts):
        raise argparse.ArgumentTypeError(f"takes a list with commas, such as 1,3, in which nothing is empty; got {shown(text)}")
    return tuple(_item(kind, part) for part in parts)


# ------------------------------------------------------------------------------------------------- what was not typed


def _resolve(stage: str, groups: dict[str, type[Config]], typed: dict[str, Any],
             given: list[str]) -> tuple[dict[str, dict[str, Any]], Any]:
    """Values per group, and the original."""
    typed_values = commands.values_of(stage, groups, typed)
    for group, config in groups.items():
        with _under_its_flag(stage, group, typed_values[group]):
            config.check_values(typed_values[group])
    parent = commands.find_parent(stage, groups, typed, given) if "parent" in groups else None
    values = commands.settle(stage, groups, typed, parent)
    if "forget" in groups:
        if parent.record.get("forget_size"):
            say(f"notice: {parent.folder} was asked to forget {parent.record['forget_size']} examples, which count as training "
                "data here unless they are named again; main_rum.py --requests keeps what is forgotten out")
        _find_scores(stage, values, typed, parent)
    return values, parent


def _find_scores(stage: str, values: dict[str, dict[str, Any]], typed: dict[str, Any], parent: Saved) -> None:
    """The file of the scores that the forget set is cut by, where none was named."""
    asked = grouping.ForgetConfig(**values["forget"])
    asked.check(thirds=stage == "rum")
    name = asked.score
    if name is not None and "scores" not in typed:
        roots = [Path(root) for root in dict.fromkeys([typed.get("save_dir", "runs"), "runs"])]
        wanted = dataset.DataConfig(**values["data"]).of_labels()
        found = find_scores(name, parent, roots, wanted, sha256(parent.file))
        say(f"scores: {found}")
        values["forget"]["scores"] = str(found)
