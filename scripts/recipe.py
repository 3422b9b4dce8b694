"""Hyper-parameters of a method from a recipe file, for shell scripts.

python scripts/recipe.py scripts/recipes/cifar10_resnet18.json NG                  the flags: --alpha 0.97 --unlearn_lr 0.01 ...
python scripts/recipe.py scripts/recipes/cifar10_resnet18.json NG --group high     those for one group
python scripts/recipe.py scripts/recipes/cifar10_resnet18.json NG --plan           a plan with the values of each group
python scripts/recipe.py scripts/recipes/cifar10_resnet18.json --list              the methods, and where their values come from
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

LEVELS = ("low", "mid", "high")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["methods"]


def values(entry: dict[str, Any], group: str | None = None) -> dict[str, Any]:
    return {**entry.get("flags", {}), **entry.get("by_group", {}).get(group, {})}


def flags(entry: dict[str, Any], group: str | None = None) -> list[str]:
    """Words for a command line of main_forget.py or main_random.py."""
    return [word for name, value in values(entry, group).items() for word in (f"--{name}", str(value))]


def plan(method: str, entry: dict[str, Any]) -> str:
    """The method on each group, each with its own values, for main_rum.py --plan."""
    density = {"density": entry["density"]} if "density" in entry else {}
    own = {group: {**values(entry, group), **density} for group in LEVELS}
    told = {group: ",".join(f"{name}={value}" for name, value in own[group].items()) for group in LEVELS}
    return " ".join(f"{group}:{method}({told[group]})" for group in LEVELS)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("method", nargs="?")
    parser.add_argument("--group", help="low, mid, high, or another that the recipe names")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--or_defaults", action="store_true", help="no flags for a method that the recipe does not have")
    args = parser.parse_args(argv)
    try:
        recipe = read(args.file)
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"cannot read the recipe {args.file}: {error}")
    if args.list:
        print("\n".join(f"{name}: {entry['status']}" for name, entry in recipe.items()))
    elif args.method not in recipe and args.or_defaults and args.method is not None:
        print()
    elif args.method not in recipe:
        parser.error(f"the recipe has {', '.join(recipe)}; got {args.method}")
    else:
        print(plan(args.method, recipe[args.method]) if args.plan else " ".join(flags(recipe[args.method], args.group)))


if __name__ == "__main__":
    main()
