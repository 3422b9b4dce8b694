"""What the words of a command line may be: choices, numbers that fit their type, one value a flag, letters that are text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shell
from test_cli_words import pretend_to_train

import arg_parser
from trainer import TrainConfig
from unlearn import METHODS, plan
from utils import BadInput, Registry, as_line

# stage | words | what the one line must say
TABLE = r"""
# a wrong word for what presets, tables and readers hang on
train | --protocol rumm | --protocol must be one of rum, sparse & did you mean 'rum'
forget | --checkpoint {run} --unlearn FT --protocol Sparse {SOME} | --protocol & did you mean 'sparse'
memorization | --recipe fasst | --recipe must be one of paper, fast & did you mean 'fast'
memorization | --score memorisation | score & did you mean 'memorization'
memorization | --score es --dataset cifar1O --checkpoint {run} | --dataset & did you mean 'cifar10'
train | --dataset cifar-10 | --dataset & did you mean 'cifar10'
imp | --dataset Digits --arch resnet20s | --dataset & did you mean 'digits'
synflow | --arch resnet-20s | --arch & did you mean 'resnet20s'
backdoor | --dataset digit --unlearn FT | --dataset & did you mean 'digits'
mask | --checkpoint {run} --dataset digis {SOME} | --dataset & did you mean 'digits'
forget | --unlearn=Retrain {SOME} | unlearning method & did you mean 'retrain'
rum | --checkpoint {run} --plan_name rumF --unlearn FT {SOME} | --plan_name & did you mean 'rumf'
analysis | --mem hihg | --mem must be one of & did you mean 'high'
# numbers that fit nowhere
train | --lr 1e39 | --lr must fit into single precision & 3.4e+38 & 1e+39
train | --lr 1e-60 | --lr must be above 0 in single precision
train | --weight_decay 1e300 | --weight_decay must fit into single precision
train | --lr {digits} | --lr must lie in & inf
train | --epochs {digits} | --epochs must fit into 64 bits & 309 digits
train | --epochs -{digits} | --epochs must lie in [1 & 310 digits
train | --epochs {many} | --epochs & takes a whole number & 5000 characters
train | --seed 9223372036854775808 | --seed must fit into 64 bits
train | --val_seed 4294967296 | --val_seed must lie in [0, 4294967295]
train | --decreasing_lr 91,{digits} | --decreasing_lr must fit into 64 bits
forget | --checkpoint {run} --unlearn FT {SOME} --split_seed 4294967296 | --split_seed must lie in [0, 4294967295]
forget | --checkpoint {run} --unlearn NG --alpha 1e39 {SOME} | --alpha must lie in [0, 1]
forget | --checkpoint {run} --unlearn FT --class_to_replace {digits} | --class_to_replace must fit into 64 bits
backdoor | --unlearn FT_prune_bi --rate nan | --rate & nan
analysis | --num_indexes_to_replace {digits} | --num_indexes_to_replace must fit into 64 bits
# values that are none, and more than one
train | --lr= | --lr & takes a number & ''
train | --lr=-- | --lr needs a value
train | --lr -- | --lr & expected one argument
train | --save_dir= | --save_dir is empty
train | --decreasing_lr 91,,136 | --decreasing_lr & nothing is empty & '91,,136'
train | --decreasing_lr= | --decreasing_lr & nothing is empty
analysis | --unlearn FT, | --unlearn & nothing is empty
train | --lr 0.1 0.2 | --lr takes one value, '0.1' & '0.2'
train | --save_dir my runs | --save_dir takes one value & Quote
train | --imagenet_arch yes | --imagenet_arch is a switch & 'yes' & --no_imagenet_arch
train | --imagenet_arch=yes | --imagenet_arch is a switch
train | --no_progress 0 | --no_progress is a switch & --progress
forget | --checkpoint {run} --unlearn FT --class_to_replace 1 3 | with commas: 1,3
forget | --checkpoint {run} --unlearn FT --class_to_replace 1, 3 | with commas: 1,3
train | --decreasing_lr 91 136 | with commas: 91,136
forget | --checkpoint {run} --unlearn FT {SOME} --unlearn_lr -1e-3 | --unlearn_lr must lie in (0, inf); got -0.001
train | --lr -.5 | --lr must lie in (0
train | --lr -inf | --lr must lie in (0, inf); got -inf
# letters that are none
train | --save_dir runs{escape}[31m | --save_dir & control characters
train | --data a{newline}b | --data & control characters
train | --data a{null}b | --data & control characters
train | --save_dir a{byte}b | --save_dir & no text
forget | --checkpoint a{escape}b --unlearn FT {SOME} | --checkpoint & control characters
train | --arch {long} | --arch & 100000 characters
train | --{long} 3 | unknown argument & characters
train | --save_dir {long} --data {long} --lr fast | --lr
forget | --checkpoint {long} --unlearn FT {SOME} | File name too long
# flags that are another stage's
analysis_mia | --scores here.npz | --scores is no flag of analysis_mia.py & analysis.py
train | --mem high | --mem is no flag of main_train.py & main_forget.py
"""
CASES = [[part.strip() for part in line.split(" | ")] for line in TABLE.splitlines() if " | " in line]
ODD = {"digits": "9" * 309, "many": "9" * 5000, "escape": "\x1b", "newline": "\n", "null": "\0", "byte": "\udcff",
       "long": "x" * 100_000, "SOME": "--num_indexes_to_replace 20"}
nowhere = pytest.fixture(autouse=True)(shell.nowhere)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretend_to_train(tmp_path_factory.mktemp("originals"), "--dataset", "digits", "--arch", "resnet20s").folder


def refusal(stage: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command line is refused with, which is one short line of printable letters and exit code 2."""
    with pytest.raises(SystemExit) as end:
        arg_parser.entry(stage, "about")(lambda args: None)(words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and said[:-1].isprintable() and len(said) < 600, said[:2000]
    return said


@pytest.mark.parametrize(("stage", "words", "told"), CASES, ids=[" ".join(case[:2]) for case in CASES])
def test_a_wrong_word_is_told_in_one_line(
    stage: str, words: str, told: str, original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = shell.listing(tmp_path, original.parent)
    # split first, so that a value may hold white space
    said = refusal(stage, [part for word in words.split() for part in word.format(run=original, **ODD).split(" ")], capsys)
    assert not [part for part in told.split(" & ") if part not in said], said
    assert shell.listing(tmp_path, original.parent) == before


def test_negative_numbers_and_later_values_are_read_as_they_are() -> None:
    """A list that begins with a minus is a value; of a flag given twice the last counts, however it is written."""
    args = arg_parser.parse("train", ["--lr", "1e-3", "--lr=2e-3", "--decreasing-lr", "3,5", "--save_dir", "-x"])
    assert args.cfg.lr == 0.002 and args.cfg.decreasing_lr == (3, 5) and args.run.save_dir == "-x"
    assert arg_parser.parse("analysis", ["--class_to_replace", "-1", "--seed", "-3,4"]).cfg.class_to_replace == (-1,)


def test_a_plan_may_stand_on_several_lines(original: Path) -> None:
    words = ["--checkpoint", str(original), "--num_indexes_to_replace", "20", "--plan"]
    texts = ("low:raw mid:FT high:NG", "low:raw\n  mid:FT\thigh:NG\n")
    plans = [arg_parser.parse("rum", [*words, text]).plan for text in texts]
    assert plans[0] == plans[1] and "\n" not in plans[1].plan


def test_the_largest_numbers_that_fit_are_settings() -> None:
    assert TrainConfig(lr=3.4028234e38, epochs=2**63 - 1, weight_decay=0.0, alpha=0.0).epochs == 2**63 - 1


@pytest.mark.parametrize(("text", "told"), [
    ("all:SCRUBS", "unlearning method 'SCRUBS' .did you mean 'SCRUB'"), ("all:ft", "did you mean 'FT'"),
    ("all:FT(unlearn_rl=1)", "no setting 'unlearn_rl' .did you mean 'unlearn_lr'"),
    ("all:FT(unlearn_lr=1e39)", "--unlearn_lr must fit into single precision"),
    ("all:FT(unlearn_lr=1e-60)", "--unlearn_lr must be above 0"), ("all:FT(unlearn_lr=nan)", "--unlearn_lr must lie in"),
    ("all:FT(unlearn_lr=inf)", "--unlearn_lr must lie in"), ("all:FT(unlearn_lr=)", "unlearn_lr='' is not of the right kind"),
    (f"all:FT(unlearn_epochs={'9' * 309})", "--unlearn_epochs must fit into 64 bits.*309 digits"),
    (f"all:FT(unlearn_epochs={'9' * 5000})", "unlearn_epochs='999"), (f"all:RL(density={'9' * 309})", "density must lie in"),
    (f"all:{'F' * 10_000}", "unknown unlearning method 'FFF"), ("x" * 10_000, "cannot read 'xxx"),
    (f"all:FT({'x' * 10_000})", "is no name=value"), (f"{'x' * 10_000}:FT", "unknown group")])
def test_a_plan_is_refused_as_flags_are(text: str, told: str) -> None:
    cfg = plan.PlanConfig(plan=text)
    with pytest.raises(BadInput, match=told) as caught:
        plan.make(cfg, None, None, "rum")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("value", [1e39, 2e-46, float("nan"), float("inf"), 10**400])
def test_settings_refuse_from_python_what_they_refuse_from_the_shell(value: float) -> None:
    with pytest.raises(BadInput, match="--unlearn_lr must"):
        METHODS["FT"].config(unlearn_lr=value)


def test_an_error_is_one_line_that_a_terminal_shows() -> None:
    assert as_line("two\nlines \x1b[31mred\x07 \udcff") == r"two lines \x1b[31mred\x07 \udcff"
    assert as_line("a" * 300) == "a" * 100 + "..." + "a" * 50 and as_line("a" * 250) == "a" * 250
    assert len(as_line("word " * 10_000)) < 2100 and as_line("word " * 300) == ("word " * 300).strip()
    with pytest.raises(BadInput) as caught:
        Registry("thing")["x" * 100_000]
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("group", "name", "value"), [
    ("protocol", "protocol", "rumm"), ("data", "dataset", "mnist"), ("model", "arch", ["resnet18"]),
    ("data", "batch_size", 10**400)])
def test_a_record_that_was_edited_is_told_before_anything_is_looked_up_by_it(
    group: str, name: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretend_to_train(tmp_path, "--dataset", "digits", "--arch", "resnet20s")
    run.record["settings"][group][name] = value
    (run.folder / "record.json").write_text(json.dumps(run.record))
    said = refusal("forget", ["--checkpoint", str(run.folder), "--unlearn", "FT", "--num_indexes_to_replace", "9"], capsys)
    assert "record.json holds a setting that no stage has written" in said and name in said and "--force" in said
