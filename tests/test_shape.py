"""The shape of the code: imports point down, files stay short, nothing stands twice, nobody prints or hides errors."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(p for p in ROOT.rglob("*.py") if not {".venv", "runs", "data", "tmp"} & set(p.relative_to(ROOT).parts))
SOURCES = [p for p in FILES if p.relative_to(ROOT).parts[0] not in ("tests", "scripts", "benchmarks")]
MAINS = [p for p in ROOT.glob("*.py") if p.stem.startswith(("main_", "analysis", "generate_"))]
CAPS = {"arg_parser.py": 300, "trainer.py": 250, "prune.py": 250, **{p.name: 60 for p in MAINS}}
# a module's layer is that of its longest matching prefix; within a layer imports are allowed
LAYERS = {"utils": 0, "batches": 1, "dataset": 1, "groups": 1, "sources": 1, "models": 1, "pruner": 1, "evaluation.tow": 1,
          "evaluation.draws": 1, "evaluation.rules": 1, "evaluation.mia": 1, "evaluation.separation": 1, "evaluation.svc": 1,
          "evaluation.distribution": 1, "evaluation.style": 1, "evaluation": 3, "trainer": 2, "updates": 1, "watch": 1,
          "unlearn": 3, "memorization": 3,
          "prune": 3, "calibration": 3, "attack": 4, "report": 4, "setups": 5, "stages": 5, "commands": 5,
          "processes": 5, "arg_parser": 5,
          **{p.stem: 6 for p in MAINS}}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module: str) -> int | None:
    fits = [name for name in LAYERS if module == name or module.startswith(name + ".")]
    return LAYERS[max(fits, key=len)] if fits else None


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if layer_of(name) is not None}


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_point_down(path: Path) -> None:
    own = layer_of(module_of(path))
    assert own is not None, "a new module needs its place in LAYERS"
    up = {name for name in imports_of(path) if layer_of(name) > own}
    assert not up


def test_imports_have_no_cycle_between_modules() -> None:
    graph = {module_of(p): imports_of(p) for p in SOURCES}
    edges = {m: {t for name in names for t in (name, name.rpartition(".")[0]) if t in graph and t != m}
             for m, names in graph.items()}
    # a package's own __init__ gathers its modules; they import one another by full name
    edges = {m: {t for t in targets if not m.startswith(t + ".")} for m, targets in edges.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for target in edges[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_files_keep_their_caps() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > CAPS.get(p.name, 400)}
    assert not long


def test_functions_stay_short() -> None:
    long = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno + 1 > 45:
                long[f"{path.relative_to(ROOT)}:{node.name}"] = node.end_lineno - node.lineno + 1
    assert not long


def code_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text) of the lines that are neither blank, comment, docstring nor import."""
    text = path.read_text()
    skip: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            skip |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return [(n, line.strip()) for n, line in lines if n not in skip and line.strip() and not line.strip().startswith("#")]


def test_no_block_of_eight_lines_stands_twice() -> None:
    places = defaultdict(list)
    for path in SOURCES:
        lines = code_lines(path)
        for i in range(len(lines) - 7):
            places["\n".join(text for _, text in lines[i : i + 8])].append(f"{path.relative_to(ROOT)}:{lines[i][0]}")
    assert not {block: at for block, at in places.items() if len(at) > 1}


def test_nobody_prints_hides_errors_or_picks_a_device() -> None:
    bad = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.func if isinstance(node, ast.Call) else None
            is_print = isinstance(name, ast.Name) and name.id == "print" and module_of(path) != "utils.words"
            is_cuda = isinstance(name, ast.Attribute) and name.attr == "cuda"
            is_loose = isinstance(node, ast.Call) and any(
                k.arg == "strict" and isinstance(k.value, ast.Constant) and k.value.value is False
                and isinstance(name, ast.Attribute) and name.attr == "load_state_dict" for k in node.keywords)
            is_pickle = isinstance(node, ast.Call) and any(
                k.arg in ("weights_only", "allow_pickle") and isinstance(k.value, ast.Constant)
                and k.value.value is (k.arg == "allow_pickle") for k in node.keywords)
            is_bare = isinstance(node, ast.ExceptHandler) and node.type is None
            if is_print or is_cuda or is_loose or is_pickle or is_bare:
                bad.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not bad


def test_only_arg_parser_knows_argparse() -> None:
    users = {p.name for p in SOURCES if re.search(r"^\s*(import|from) argparse", p.read_text(), re.M)}
    assert users == {"arg_parser.py"}


def test_no_main_decides_by_a_name() -> None:
    for path in MAINS:
        text = path.read_text().replace('if __name__ == "__main__":', "")
        assert not re.search(r"\bif .*(==|\bin) *[\"'(]", text), path.name


def test_help_imports_no_heavy_library() -> None:
    script = ("import sys, analysis, main_forget\n"
              "for main in (analysis.main, main_forget.main):\n"
              "    try:\n        main(['--help'])\n    except SystemExit as end:\n        assert end.code == 0\n"
              "heavy = {'torchvision', 'sklearn', 'scipy', 'matplotlib', 'PIL', 'jinja2', 'torch._dynamo'} & set(sys.modules)\n"
              "assert not heavy, heavy")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_path_of_a_machine_is_in_the_repository() -> None:
    # put together here, so that this file does not find itself
    names = "|".join(("wo" + "rk", "ho" + "me", "ro" + "ot", "mn" + "t", "localscra" + "tch"))
    tracked = [p for p in ROOT.rglob("*") if p.suffix in (".py", ".md", ".sh", ".toml", ".txt", ".cff") and p.is_file()]
    tracked = [p for p in tracked if not {".venv", "runs", "data", "tmp", ".git"} & set(p.relative_to(ROOT).parts)]
    found = [f"{p.relative_to(ROOT)}: {m.group()}" for p in tracked
             for m in re.finditer(rf"(?<![\w.])/({names})/\w+", p.read_text())]
    assert not found
