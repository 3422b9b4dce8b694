"""What a user can get wrong ends with exit code 2 and one line that says what to do, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shell
import torch
from torch import Tensor

import models
import trainer
from models.peer import read_safely
from utils import find_runs

# what is wrong | stage | its command line | what the message must say. {word} is what Room.word is or makes
TABLE = r"""
# checkpoints
checkpoint missing | forget | --checkpoint {tmp}/no/model.pt {FT} {SOME} | --checkpoint & No such file & main_train.py
checkpoint empty | forget | --checkpoint {empty} --arch resnet8s {ON_FILE} | is empty
checkpoint truncated | forget | --checkpoint {truncated} --arch resnet8s {ON_FILE} | truncated & copy it
checkpoint half in a run folder | forget | --checkpoint {halved_run} {FT} {SOME} | \
    model.pt is damaged (50,000 bytes in place of & --force & main_train.py
checkpoint gone from a run folder | forget | --checkpoint {hollow_run} {FT} {SOME} | \
    model.pt is missing & --force & main_train.py
checkpoint of random bytes | forget | --checkpoint {random_bytes} --arch resnet8s {ON_FILE} | not a file of torch.save
checkpoint of something else | forget | --checkpoint {tensor_file} --arch resnet8s {ON_FILE} | Tensor & state_dict
checkpoint is a pickled object | forget | --checkpoint {pickled} --arch resnet8s {ON_FILE} | \
    pathlib & could run code & state_dict
checkpoint of another architecture | forget | --checkpoint {lone_model} --arch resnet32s {ON_FILE} | \
    resnet8s & not resnet32s & --arch
checkpoint of other classes | forget | --checkpoint {lone_model} {TWO} {FT} {SOME} | \
    a model of 3 outputs & --classes
checkpoint of another schema | forget | --checkpoint {future_model} --arch resnet8s {ON_FILE} | \
    schema 99 & main_train.py
published checkpoint of another architecture | forget | --checkpoint {published} --arch resnet32s {ON_FILE} | \
    do not fit resnet32s & --arch
published checkpoint of other classes | forget | --checkpoint {published} {TWO} {FT} {SOME} | of 3 outputs & has 2 classes
published checkpoint of another stem | forget | --checkpoint {stem} --arch resnet18 {ON_FILE} | stem & --imagenet_arch
checkpoint without a weight | forget | --checkpoint {lacking} --arch resnet8s {ON_FILE} | \
    lacking.pt & conv1.weight is missing
record damaged | forget | --checkpoint {damaged_record} {FT} {SOME} | record.json
record of binary rubbish | forget | --checkpoint {binary_record} {FT} {SOME} | record.json
record without its fields | forget | --checkpoint {bare_record} {FT} {SOME} | record.json
record of another version | forget | --checkpoint {future_record} {FT} {SOME} | record.json & schema 99 & --force
original not finished | forget | --checkpoint {unfinished} {FT} {SOME} | not finished & running
no original | forget | {FT} {SOME} --arch resnet8s --seed 5 | \
    no finished original & new/runs matches & --arch resnet8s --seed 5 --save_dir & main_train.py & --checkpoint
no original of that rate | forget | --checkpoint {runs} --lr 0.7 {FT} {SOME} | no finished original & --lr 0.7
several originals | forget | --checkpoint {two_originals} {FT} {SOME} | several originals & --checkpoint
# masks
mask of another model | random | {RL} --path {other_mask} | another model & generate_mask.py
mask of other shapes | random | {RL} --path {reshaped_mask} | another model
mask of another forget set | random | --checkpoint {run} --unlearn RL --num_indexes_to_replace 21 --path {mask} | \
    another forget set & split_key & generate_mask.py
mask of another forget set, by folder | random | --checkpoint {run} --unlearn RL --class_to_replace 1 --path {runs} | \
    0 of 1 & generate_mask.py
mask damaged | random | {RL} --path {random_bytes} | not a file of torch.save
mask with halves | random | {RL} --path {grey_mask} | other than 0 and 1 & generate_mask.py
mask is a list | random | {RL} --path {list_file} | no saliency mask
mask missing | random | {RL} --path {tmp}/with_0.5.pt | with_0.5.pt & does not exist
mask folder empty | random | {RL} --path {tmp} | 0 of 0 & generate_mask.py
mask folder of several densities | random | {RL} --path {densities} | with_0.2.pt & with_0.5.pt & name one
mask mode without decay | forget | --checkpoint {run} --unlearn ssd --path {tmp} --mask_mode published {SOME} | no weight decay
mask mode without a mask | random | {RL} --mask_mode published | --mask_mode & --path
RL_og with a mask | random | --checkpoint {run} --unlearn RL_og --path {mask} {SOME} | RL_og & --path & SalUn
retrain with a mask | forget | --checkpoint {run} --unlearn retrain --path {mask} {SOME} | retrain & --path
# forget sets
index out of range | forget | {ON_RUN} --forget_index {index_beyond} | 0 to 429 & 430
index negative | forget | {ON_RUN} --forget_index {index_negative} | 0 to & -1
index twice | forget | {ON_RUN} --forget_index {index_twice} | more than once
index empty | forget | {ON_RUN} --forget_index {index_empty} | one or more
index of floats | forget | {ON_RUN} --forget_index {index_float} | whole numbers & float64
index is a bool mask | forget | {ON_RUN} --forget_index {index_bool} | whole numbers & bool
index of two dimensions | forget | {ON_RUN} --forget_index {index_flat} | list & (2, 2)
index is everything | forget | {ON_RUN} --forget_index {index_all} | whole training set & fewer
index in validation | forget | {ON_RUN} --forget_index {index_val} | 2 of the indices & --val_fraction 0
index file missing | forget | {ON_RUN} --forget_index {tmp}/no.npy | no.npy & .json
index file is a folder | forget | {ON_RUN} --forget_index {tmp} | --forget_index
index file of random bytes | forget | {ON_RUN} --forget_index {random_npy} | cannot read --forget_index
index npz broken | forget | {ON_RUN} --forget_index {broken_zip} | cannot read --forget_index
index npz without forget | forget | {ON_RUN} --forget_index {index_unnamed} | 'forget'
index json is no list | forget | {ON_RUN} --forget_index {json_object} | need a list
index json broken | forget | {ON_RUN} --forget_index {json_broken} | cannot read --forget_index
index and class | forget | {ON_RUN} --forget_index {index_val} --class_to_replace 1 | --forget_index & leave
class that does not exist | forget | {ON_RUN} --class_to_replace 3 | --class_to_replace 3 & 0-2
class below -1 | forget | {ON_RUN} --class_to_replace -2 | --class_to_replace & -2
class list with -1 | forget | {ON_RUN} --class_to_replace 1,-1 | 1,-1 & stands alone
all classes without a number | forget | {ON_RUN} --class_to_replace -1 | say what to forget
all classes one by one | forget | {ON_RUN} --class_to_replace 0,1,2 | whole training set & fewer
nothing to forget | forget | {ON_RUN} | say what to forget & --num_indexes_to_replace & --forget_index
more than there are | forget | {ON_RUN} --num_indexes_to_replace 400 | 400 & only 388
more than the class has | forget | {ON_RUN} --class_to_replace 1 --num_indexes_to_replace 200 | 200 & only 132
number and fraction | forget | {ON_RUN} {SOME} --forget_fraction 0.1 | not both
fraction 0 | forget | {ON_RUN} --forget_fraction 0 | --forget_fraction must lie in (0, 1]
fraction above 1 | forget | {ON_RUN} --forget_fraction 1.1 | --forget_fraction must lie in (0, 1] & 1.1
fraction 1 | forget | {ON_RUN} --forget_fraction 1 | whole training set
# settings that contradict the original
other data | forget | {ON_RUN} {SOME} --data {other_data} | data differ & data_key & --data
other validation split | forget | {ON_RUN} {SOME} --val_fraction 0.2 | --val_fraction 0.2 & has 0.1
other validation seed | forget | {ON_RUN} {SOME} --val_seed 3 | --val_seed 3 & has 1
other architecture than the record's | forget | {ON_RUN} {SOME} --arch resnet18 | --arch resnet18 & resnet8s
other data set than the record's | forget | {ON_RUN} {SOME} --dataset svhn | --dataset svhn & digits
other classes than the record's | forget | {ON_RUN} {SOME} --classes 0,1 | --classes 0-1 & 0-2
other stem than the record's | mask | --checkpoint {run} {SOME} --imagenet_arch | --imagenet_arch
other epochs than the record's | forget | {ON_RUN} {SOME} --epochs 7 | --epochs 7 & has 1
other rate than the record's | forget | {ON_RUN} {SOME} --lr 0.7 | --lr 0.7 & has 0.1
class count typed wrong | train | {THREE} --num_classes 7 | --num_classes 7 & 3 classes
# the command line
no method | forget | --checkpoint {run} {SOME} | --unlearn METHOD is missing & SCRUB
method without its name | forget | --checkpoint {run} {SOME} --unlearn | unlearn
unknown method | forget | --checkpoint {run} --unlearn NGG {SOME} | NGG & did you mean 'NG' & --list
influence without damping | forget | --checkpoint {run} --unlearn wfisher --damping 0 {SOME} | --damping must lie in (0, inf)
solver that is none | forget | --checkpoint {run} --unlearn wfisher --solver newton {SOME} | --solver & woodbury & cg & lissa
influence by no samples | forget | --checkpoint {run} --unlearn wfisher --fisher_samples 0 {SOME} | --fisher_samples
noise of negative variance | forget | --checkpoint {run} --unlearn fisher_new --alpha -1 {SOME} | --alpha
mode of another method | forget | --checkpoint {run} --unlearn fisher --wfisher_mode published {SOME} | \
    --wfisher_mode & belongs to wfisher
prune of everything | forget | --checkpoint {run} --unlearn FT_prune_bi --rate 1 {SOME} | --rate
share that is none | forget | --checkpoint {run} --unlearn RL_proximal --mask_ratio 1.5 {SOME} | --mask_ratio
method that is not of main_random | random | {ON_RUN} {SOME} | RL, RL_og & main_forget.py --unlearn FT
unknown flag | train | {THREE} --learning_rate 0.1 | --learning_rate & --help
unknown word | train | {THREE} quickly | quickly
flag of another method | forget | {ON_RUN} {SOME} --msteps 3 | --msteps & belongs to SCRUB
flag of several other methods | forget | {ON_RUN} {SOME} --alpha 1 | --alpha & FT_prune & NG
flag of no main | train | {THREE} --unlearn FT | --unlearn
prefix of a flag | forget | {ON_RUN} {SOME} --unlearn_l 0.1 | --unlearn_l & unknown
rate is no number | forget | {ON_RUN} {SOME} --unlearn_lr fast | --unlearn_lr & a number & fast
rate is infinite | forget | {ON_RUN} {SOME} --unlearn_lr inf | --unlearn_lr & inf
rate is 0 | train | {THREE} --lr 0 | --lr must lie in (0
epochs are no whole number | train | --dataset digits --epochs 1.5 | --epochs & whole number & 1.5
alpha out of bounds | forget | --checkpoint {run} --unlearn NG --alpha 1.5 {SOME} | --alpha must lie in [0, 1]; got 1.5
alpha is NaN | forget | --checkpoint {run} --unlearn NG --alpha nan {SOME} | --alpha must lie in [0, 1] & nan
density above 1 | mask | --checkpoint {run} {SOME} --density 0.5,1.5 | --density & 1.5
seed below 0 | train | {THREE} --seed -1 | --seed must lie in [0 & -1
bad choice | train | {THREE} --schedule triangle | --schedule & cosine, step, constant & triangle
unknown architecture | train | --dataset digits --arch resnet19 | --arch & resnet18 & resnet19
unknown data set | train | --dataset mnist | --dataset & digits & mnist
value missing | train | {THREE} --lr | --lr & expected one argument
more epochs without l1 than epochs | forget | --checkpoint {run} --unlearn FT_l1 --no_l1_epochs 12 {SOME} | \
    --no_l1_epochs 12 & --unlearn_epochs 10
# data
augmentation of a data set without | train | --dataset svhn --data {tmp} --no_download --aug | svhn & --no_aug
image too small | train | --dataset digits --arch vgg16_bn --epochs 1 | vgg16_bn & 8 & 16
classes are nonsense | train | --dataset digits --classes zero | --classes & 0-99 & zero
classes beyond the data set's | train | --dataset digits --classes 0-10 | --classes & 0-9
one class | train | --dataset digits --classes 3 | --classes & two or more
no data | train | --dataset imagenet64 --data {tmp}/data --no_download | train_data_batch_1 & imagenet64.npz
npz broken | train | --dataset cifar10 --data {broken_npz} | cifar10.npz & cannot be read
npz of other images | train | --dataset cifar10 --data {small_npz} | cifar10.npz & 32
whole data set is validation | train | {THREE} --val_fraction 1 | --val_fraction must lie in [0, 1)
no CUDA | train | {THREE} --device cuda | --device cuda & --device cpu
# runs that cannot end well
loss not finite | train | {THREE} --lr 1e30 --epochs 2 | the loss became & epoch & learning rate & 1e+30
loss not finite in retraining | forget | --checkpoint {run} --unlearn retrain --unlearn_lr 1e30 {SOME} | \
    the loss became & learning rate
save_dir is a file | train | {THREE} --save_dir {empty} | cannot write & --save_dir
save_dir below a file | train | {THREE} --save_dir {empty}/runs | cannot write & --save_dir
# analysis
nothing to analyse | analysis | --save_dir {tmp} | no finished unlearning run & main_forget.py
filter lets nothing pass | analysis_mia | --save_dir {runs} --num_indexes_to_replace 99 | passes the filters
filter by another data set | analysis | --save_dir {runs} --dataset cifar10 | passes the filters
analysis of damaged outputs | analysis | --save_dir {damaged_outputs} --mia interval | outputs.npz & --force
analysis of halved outputs | analysis | --save_dir {halved_outputs} --mia interval | outputs.npz & --force
out is a file | analysis | --save_dir {runs} --unlearn FT --out {empty} | cannot write & --out
page is a folder | analysis | --save_dir {runs} --html {tmp} | --html & folder & report.html
page below a file | analysis_mia | --save_dir {runs} --unlearn FT --html {empty}/page.html | cannot write & --html
no points to look at | analysis_distribution | --save_dir {runs} --num_indexes_to_replace 99 | passes the filters
features of no layer | analysis_distribution | --save_dir {runs} --features layer9 | --features & penultimate, logits & 'layer9'
space that is none | analysis_distribution | --save_dir {runs} --space umap | --space & own, tsne & 'umap'
perplexity of one | analysis_distribution | --save_dir {runs} --perplexity 1 | --perplexity must lie in (1,
too few points of a plane | analysis_distribution | --save_dir {runs} --tsne_points 5 | --tsne_points must lie in [20,
points of other data | analysis_distribution | --save_dir {runs} --unlearn FT --data {other_digits} | data_key & --data
numbers have no place | analysis_distribution | --save_dir {runs} --unlearn FT --out {empty} | cannot write & --out
attack that is not looked at | analysis_distribution | --save_dir {runs} --mia svc | --mia is no flag of & analysis.py
"""
STAGES = {"train": "main_train.py", "mask": "generate_mask.py", "forget": "main_forget.py", "random": "main_random.py",
          "rum": "main_rum.py", "memorization": "main_memorization.py", "analysis": "analysis.py",
          "analysis_mia": "analysis_mia.py", "analysis_distribution": "analysis_distribution.py"}
CASES = {line.split(" | ")[0]: [part.strip() for part in line.split(" | ")[1:]]
         for line in TABLE.replace("\\\n", "").splitlines() if " | " in line}


class Room(dict):
    """Makes what a case needs, in its own temporary folder, when its command line names it."""

    def __init__(self, tmp: Path, runs: Path) -> None:
        self.root, self.original, self.masked = tmp / "made", shell.only(runs, "train"), shell.only(runs, "mask")
        self.root.mkdir()
        mask = self.masked.folder / "with_0.5.pt"
        super().__init__(
            tmp=str(tmp), runs=str(runs), run=str(self.original.folder), mask=str(mask),
            SOME="--num_indexes_to_replace 20", FT="--unlearn FT --unlearn_epochs 1",
            ON_RUN=f"--checkpoint {self.original.folder} --unlearn FT --unlearn_epochs 1",
            RL=f"--checkpoint {self.original.folder} --unlearn RL --unlearn_epochs 1 --num_indexes_to_replace 20",
            TWO="--dataset digits --arch resnet8s --classes 0,1",
            THREE="--dataset digits --arch resnet8s --classes 0-2 --epochs 1",
            ON_FILE="--dataset digits --classes 0-2 --unlearn FT --unlearn_epochs 1 --num_indexes_to_replace 20")
        self.library, self.model, self.mask_file = runs, self.original.folder / "model.pt", mask

    def __missing__(self, name: str) -> str:
        return str(getattr(self, name)())

    def other_digits(self) -> Path:
        return shell.write_digits(self.root, lambda y: (y + 1) % 3)

    def bytes(self, name: str, content: bytes) -> Path:
        (self.root / name).write_bytes(content)
        return self.root / name

    def tensors(self, name: str, content: object) -> Path:
        torch.save(content, self.root / name)
        return self.root / name

    def array(self, *values: object) -> Path:
        np.save(self.root / "index.npy", np.array(values))
        return self.root / "index.npy"

    def copy(self, record: str | None = None, **changed: object) -> Path:
        """A copy of the original's run folder, with another text or other fields in its record."""
        folder = self.root / "train" / f"copy{len(list(self.root.glob('train/*')))}"
        shutil.copytree(self.original.folder, folder)
        whole = json.dumps({**self.original.record, **changed})
        (folder / "record.json").write_text(whole if record is None else record)
        return folder

    # checkpoints
    def empty(self) -> Path:
        return self.bytes("empty.pt", b"")

    def truncated(self) -> Path:
        whole = self.model.read_bytes()
        return self.bytes("half.pt", whole[: len(whole) // 2])

    def random_bytes(self) -> Path:
        return self.bytes("random.pt", np.random.default_rng(3).bytes(5000))

    def tensor_file(self) -> Path:
        return self.tensors("tensor.pt", torch.zeros(3))

    def list_file(self) -> Path:
        return self.tensors("list.pt", [torch.zeros(3)])

    def pickled(self) -> Path:
        return self.tensors("pickled.pt", {"state_dict": {"conv1.weight": Path("somewhere")}})

    def lone_model(self) -> Path:
        return self.bytes("lone.pt", self.model.read_bytes())

    def future_model(self) -> Path:
        return self.tensors("future.pt", {**read_safely(self.model), "schema": 99})

    def published(self) -> Path:
        return self.tensors("0model_SA_best.pth.tar", {"state_dict": read_safely(self.model)["state_dict"]})

    def lacking(self) -> Path:
        whole = read_safely(self.model)
        state = {name: value for name, value in whole["state_dict"].items() if name != "conv1.weight"}
        return self.tensors("lacking.pt", {**whole, "state_dict": state})

    def stem(self) -> Path:
        with torch.device("meta"):
            shapes = models.build_empty("resnet18", 3, imagenet=True).state_dict()
        # a view of one number each, so that the file is small
        return self.tensors("stem.pt", {n: torch.ones((), dtype=v.dtype).expand(v.shape) for n, v in shapes.items()})

    def halved_run(self) -> Path:
        folder = self.copy()
        (folder / "model.pt").write_bytes(self.model.read_bytes()[:50_000])
        return folder

    def hollow_run(self) -> Path:
        folder = self.copy()
        (folder / "model.pt").unlink()
        return folder

    def damaged_record(self) -> Path:
        return self.copy(json.dumps(self.original.record)[:300])

    def binary_record(self) -> Path:
        folder = self.copy()
        (folder / "record.json").write_bytes(b"\xff\xfe\x80 rubbish")
        return folder

    def bare_record(self) -> Path:
        return self.copy('{"schema": 1}')

    def future_record(self) -> Path:
        return self.copy(schema=99)

    def unfinished(self) -> Path:
        return self.copy(status="running")

    def two_originals(self) -> Path:
        self.copy()
        return self.copy().parent.parent

    # masks
    def other_mask(self) -> Path:
        return self.tensors("other.pt", {"fc.weight": torch.ones(3, 4, dtype=torch.bool)})

    def changed_mask(self, change: Callable[[Tensor], Tensor]) -> Path:
        return self.tensors("changed.pt", {name: change(part) for name, part in read_safely(self.mask_file).items()})

    def reshaped_mask(self) -> Path:
        return self.changed_mask(lambda part: part[None])

    def grey_mask(self) -> Path:
        return self.changed_mask(lambda part: torch.full_like(part, 0.5, dtype=torch.float32))

    def densities(self) -> Path:
        folder = self.root / "densities"
        shutil.copytree(self.masked.folder, folder)
        shutil.copy(self.mask_file, folder / "with_0.2.pt")
        return folder

    # forget sets; the training split is all of 430 images but the validation split
    def split(self, part: str) -> np.ndarray:
        with np.load(self.masked.folder / "splits.npz") as file:
            return file[part]

    def index_beyond(self) -> Path:
        return self.array(0, 430)

    def index_negative(self) -> Path:
        return self.array(-1, 4)

    def index_twice(self) -> Path:
        return self.array(*self.split("train")[[4, 5, 4]])

    def index_empty(self) -> Path:
        np.save(self.root / "index.npy", np.empty(0, np.int64))
        return self.root / "index.npy"

    def index_float(self) -> Path:
        return self.array(1.0, 2.0)

    def index_bool(self) -> Path:
        return self.array(*[True, False] * 215)

    def index_flat(self) -> Path:
        return self.array([1, 2], [3, 4])

    def index_all(self) -> Path:
        return self.array(*self.split("train"))

    def index_val(self) -> Path:
        return self.array(*self.split("train")[:3], *self.split("val")[:2])

    def random_npy(self) -> Path:
        return self.bytes("random.npy", np.random.default_rng(3).bytes(500))

    def broken_zip(self) -> Path:
        whole = (self.masked.folder / "splits.npz").read_bytes()
        return self.bytes("half.npz", whole[: len(whole) // 2])

    def index_unnamed(self) -> Path:
        np.savez(self.root / "index.npz", indices=np.arange(3))
        return self.root / "index.npz"

    def json_object(self) -> Path:
        return self.bytes("index.json", b'{"forget": [1, 2]}')

    def json_broken(self) -> Path:
        return self.bytes("index.json", b"[1, 2")

    # data
    def other_data(self) -> Path:
        return shell.write_digits(self.root / "data", lambda y: np.roll(y, 1))

    def broken_npz(self) -> Path:
        return self.bytes("cifar10.npz", b"PK\x03\x04" + b"x" * 1000).parent

    def small_npz(self) -> Path:
        x, y = np.zeros((8, 16, 16, 3), np.uint8), np.arange(8)
        np.savez(self.root / "cifar10.npz", x_train=x, y_train=y, x_test=x, y_test=y)
        return self.root

    # analysis
    def kept(self, *methods: str) -> Path:
        for run in find_runs(self.library, ("forget",)):
            if run.setting("unlearn") in methods:
                shutil.copytree(run.folder, self.root / "forget" / run.folder.name)
        return self.root

    def no_retrain(self) -> Path:
        return self.kept("FT", "NG")

    def damaged_outputs(self) -> Path:
        path = shell.only(self.kept("FT", "retrain"), "forget", unlearn="FT").folder / "outputs.npz"
        path.write_bytes(np.random.default_rng(3).bytes(500))
        return self.root

    def halved_outputs(self) -> Path:
        path = shell.only(self.kept("FT", "retrain"), "forget", unlearn="FT").folder / "outputs.npz"
        path.write_bytes(path.read_bytes()[:2000])
        return self.root


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shell.library(tmp_path_factory)


@pytest.fixture
def room(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # where ./runs and ./data are, and are empty
    return Room(tmp_path, library)


def message(stage: str, words: list[str], room: Room, capsys: pytest.CaptureFixture[str]) -> str:
    """What the stage says of these words, after exit code 2 on one line and with everything as it was."""
    capsys.readouterr()
    before = shell.listing(Path(room["tmp"]), room.library)
    with pytest.raises(SystemExit) as end:
        shell.call(stage, *words, save_dir=Path(room["tmp"]) / "new" / "runs")
    said = capsys.readouterr()
    assert end.value.code == 2, said.err
    assert "Traceback" not in said.out + said.err
    start = f"{stage}: error: "
    assert said.err.startswith(start) and said.err.endswith("\n") and said.err.count("\n") == 1, said.err
    assert shell.listing(Path(room["tmp"]), room.library) == before
    return said.err[len(start):]


def test_there_are_enough_bad_inputs() -> None:
    assert len(CASES) >= 45 and len(CASES) == sum(" | " in line for line in TABLE.splitlines())


@pytest.mark.parametrize("wrong", CASES)
def test_bad_input_ends_in_one_line_and_leaves_nothing(
    wrong: str, room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, line, words = CASES[wrong]
    if wrong == "no CUDA" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    said = message(STAGES[stage], line.format_map(room).split(), room, capsys)
    assert not [word for word in words.split(" & ") if word not in said], said


def test_analysis_without_retrain_prints_the_command_that_helps(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    """The command is run as it stands, and then the same analysis goes through."""
    folder = room.no_retrain().rename(Path(room["tmp"]) / "two words")
    with pytest.raises(SystemExit) as end:
        shell.call("analysis.py", save_dir=folder)
    said = capsys.readouterr().out
    assert end.value.code == 1 and not (folder / "analysis").exists()
    command = shlex.split(re.search(r"make it: (.*)", said)[1])
    assert command[0] == "python"
    shell.STAGES[command[1]].main([*command[2:], *shell.QUIET])
    shell.call("analysis.py", save_dir=folder)
    # the library's own retrain has the same settings, hence the same name
    retrained, known = (shell.only(at, "forget", unlearn="retrain") for at in (folder, room.library))
    assert retrained.folder.name == known.folder.name
    table = capsys.readouterr().out
    assert all(f"| {name} " in table for name in ("retrain", "FT", "NG"))


@pytest.mark.parametrize("name", ["outputs.npz", "model.pt", "splits.npz"])
def test_full_disk_is_said_and_keeps_the_run(
    name: str, room: Room, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once there is room the same command goes on; what the run had is not thrown away."""
    real = os.replace

    def replace(part: Path, path: Path) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(part, path)

    words, save_dir = "{ON_RUN} {SOME}".format_map(room).split(), Path(room["tmp"]) / "new"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(os, "replace", replace)
        shell.call("main_forget.py", *words, save_dir=save_dir)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1
    assert name in said and "No space left" in said and "--save_dir" in said
    (folder,) = (save_dir / "forget").iterdir()
    assert json.loads((folder / "record.json").read_text())["status"].startswith("failed: CannotWrite")
    shell.call("main_forget.py", *words, save_dir=save_dir)
    assert json.loads((folder / "record.json").read_text())["status"] == "done"


def test_other_failures_keep_their_traceback_and_are_in_the_record(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours is no bad input: it is raised as it is, the record says what it was, and the next try runs."""
    def fail(*args: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    words, save_dir = "{ON_RUN} {SOME}".format_map(room).split(), Path(room["tmp"]) / "new"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(trainer.Descent, "_step", fail)
        shell.call("main_forget.py", *words, save_dir=save_dir)
    (path,) = save_dir.glob("forget/*/record.json")
    assert json.loads(path.read_text())["status"] == "failed: ZeroDivisionError: a fault of ours"
    shell.call("main_forget.py", *words, save_dir=save_dir)
    assert shell.only(save_dir, "forget").folder == path.parent


def test_bad_input_leaves_other_runs_of_the_folder(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    """A save_dir that was there, empty or with another run, stays as it was."""
    for name in ("empty", "used/train/other"):
        (Path(room["tmp"]) / name).mkdir(parents=True)
    for name in ("empty", "used"):
        words = "{THREE} --lr 1e30 --epochs 2 --save_dir".format_map(room).split()
        message("main_train.py", [*words, str(Path(room["tmp"]) / name)], room, capsys)
