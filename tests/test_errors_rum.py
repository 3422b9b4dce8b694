"""What a user can get wrong about groups, scores and plans: exit code 2, one line that says what to do, nothing written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored import digits, memorization_run, write_chunks, write_scores
from test_errors import STAGES as NAMES
from test_errors import Room, message

# what is wrong | stage | its command line | what the message must say. {word} is what Room.word is or makes; ~ in a plan's
# text stands for a space
TABLE = r"""
# files of scores
scores of other labels | forget | {ON_RUN} {HIGH} {other_labels} | another data set & labels differ & --classes
scores of other images | forget | {ON_RUN} {HIGH} {other_images} | another data set & images_key & --classes
scores of another length | forget | {ON_RUN} {HIGH} {shorter} | 429 scores & 430 training images
scores of another length, no labels | mask | --checkpoint {run} {HIGH} {shorter_alone} | 429 scores & 430 training images
published scores of other labels | random | {ON_RL} {HIGH} {published_labels} | another data set & labels differ
scores not a number | forget | {ON_RUN} {HIGH} {not_a_number} | not finite for 1 of 388 & main_memorization.py
scores infinite | rum | {ON_RAW} {HIGH} {infinite} | not finite for 2 of 388
scores file missing | forget | {ON_RUN} {HIGH} {tmp}/no.npz | cannot read the scores & no.npz & main_memorization.py
scores file is a folder | forget | {ON_RUN} {HIGH} {tmp} | cannot read the scores
scores file of random bytes | forget | {ON_RUN} {HIGH} {random_npz} | cannot read the scores
scores file broken | forget | {ON_RUN} {HIGH} {halved_npz} | cannot read the scores
scores file without a name | forget | {ON_RUN} {HIGH} {lone_array} | without a name & memorization
scores file without the score | forget | {ON_RUN} {HIGH} {scores} --mem_proxy ho_ret | \
    holds no 'ho_ret' & memorization, confidence
scores of two dimensions | forget | {ON_RUN} {HIGH} {flat_scores} | one real number for each training image & (430, 2)
scores of words | forget | {ON_RUN} {HIGH} {wordy_scores} | one real number for each training image
complex scores | forget | {ON_RUN} {HIGH} {complex_scores} | one real number for each & complex
memorization above one | forget | {ON_RUN} {HIGH} {above_one} | 'memorization' goes from & to 1.5 & -1 to 1 & --any_scores
memorization below minus one | rum | {ON_RAW} {HIGH} {below_minus_one} | -1.5 & -1 to 1 & --any_scores
memorization in whole numbers | mask | --checkpoint {run} {HIGH} {whole_numbers} | whole numbers (int64) & --any_scores
memorization all the same | forget | {ON_RUN} {HIGH} {all_the_same} | 0.25 for all 388 & by lot & --any_scores
a share above one | forget | {ON_RUN} {HIGH} {percent} --mem_proxy confidence | 'confidence' goes from & 0 to 1 & --any_scores
an entropy below zero | forget | {ON_RUN} {HIGH} {negative_entropy} --mem_proxy entropy | 'entropy' goes from & 0 or more
compared with scores above one | memorization | --checkpoint {run} --mem_proxy confidence --scores {above_one} | \
    'memorization' goes from & -1 to 1
scores of pickled objects | forget | {ON_RUN} {HIGH} {pickled_scores} | cannot read the scores & Python objects
labels of pickled objects | forget | {ON_RUN} {HIGH} {pickled_labels} | cannot read the scores
chunks of pickled objects | forget | {ON_RUN} --group_index 2 {SOME} --scores {pickled_chunks} | cannot read the scores
# finding them
no memorization scores | forget | {ON_RUN} --mem high {SOME} | \
    no scores 'memorization' & python main_memorization.py --dataset digits --classes 0-2 & --scores
no scores of a measured proxy | rum | {ON_RAW} --mem mix --mem_proxy ho_ret --num_indexes_to_replace 30 | \
    no scores 'ho_ret' & python main_memorization.py --score ho_ret --checkpoint
no chunks | mask | --checkpoint {run} --group_index 3 {SOME} | no scores 'es' & python main_memorization.py --score es
proxy that was not recorded | forget | --checkpoint {published} --arch resnet8s {ON_FILE} --mem high --mem_proxy confidence | \
    'confidence' is recorded while & events.npz & main_train.py & --scores
several runs with the scores | forget | {ON_RUN} --mem high {SOME} --save_dir {two_pools} | \
    several runs have & first- & second- & --scores
# groups
groups larger than the data | forget | {ON_RUN} --mem high --num_indexes_to_replace 130 --scores {scores} | \
    groups of 130, 130, 130 & need 390 & 388
mix larger than the data | rum | {ON_RAW} --mem mix --num_indexes_to_replace 390 --scores {scores} | \
    groups of 130, 130, 130 & there are 388
mix of two | rum | {ON_RAW} --mem mix --num_indexes_to_replace 2 --scores {scores} | 2 & no thirds & 3 or more
mix of two in chunks | forget | {ON_RUN} --group_index -1 --num_indexes_to_replace 2 --scores {chunks} | 2 & no thirds
chunk that does not exist | forget | {ON_RUN} --group_index 15 {SOME} --scores {chunks} | no chunk 15 & 0-14
chunk below -1 | forget | {ON_RUN} --group_index -2 {SOME} --scores {chunks} | --group_index must lie in & -2
chunk too small | forget | {ON_RUN} --group_index 4 --num_indexes_to_replace 27 --scores {chunks} | \
    chunk 4 has 2 & not 27 & --es_chunks
group file without chunks | forget | {ON_RUN} --group_index 4 {SOME} --scores {values_alone} | \
    holds no chunks & chunk_es, distance, group, levels missing & --score es
group file of too few chunks | forget | {ON_RUN} --group_index -1 --num_indexes_to_replace 30 --scores {few_chunks} | \
    (3, 12, 14) of 15 & 4 chunks
group file of another data set | forget | {ON_RUN} --group_index 4 {SOME} --scores {short_chunks} | 429 scores & 430
group file of other sizes | forget | {ON_RUN} --group_index 4 {SOME} --scores {torn_chunks} | do not fit the 430 & --score es
scores are no chunks | forget | {ON_RUN} --group_index 4 {SOME} --scores {scores} | holds no 'es'
memorization and entanglement group | forget | {ON_RUN} {SOME} --mem high --group_index 3 --scores {scores} | \
    --mem & --group_index & one of the two
proxy and entanglement group | mask | --checkpoint {run} {SOME} --mem_proxy entropy --group_index 3 --scores {scores} | \
    --group_index & one of the two
proxy without a group | forget | {ON_RUN} {SOME} --mem_proxy confidence | say which group & --mem low
scores without a group | random | {ON_RL} {SOME} --scores {scores} | say which group & --mem low
group of a class | forget | {ON_RUN} {SOME} --mem high --class_to_replace 1 --scores {scores} | \
    --mem & --class_to_replace & away
chunk of a class | forget | {ON_RUN} {SOME} --group_index 3 --class_to_replace 1 --scores {chunks} | --class_to_replace & away
group by a fraction | forget | {ON_RUN} --mem high --forget_fraction 0.1 --scores {scores} | --forget_fraction & away
group without a number | forget | {ON_RUN} --mem high --scores {scores} | how many & --num_indexes_to_replace
chunk without a number | forget | {ON_RUN} --group_index 3 --scores {chunks} | how many & --num_indexes_to_replace
group of a file | forget | {ON_RUN} --mem high --forget_index {index} --scores {scores} | --forget_index & leave
unknown group | forget | {ON_RUN} {SOME} --mem top --scores {scores} | --mem must be one of low, mid, high, mix & top
unknown proxy | forget | {ON_RUN} {HIGH} {scores} --mem_proxy c_score | --mem_proxy must be one of & c_score & confidence
# plans
nothing to do | rum | --checkpoint {run} {MIX} | --unlearn METHOD & --plan_name rum & --plan
unknown method in a plan | rum | {ON} {MIX} --plan low:raw~mid:FTT~high:RL | FTT & did you mean 'FT' & --list
unknown group in a plan | rum | {ON} {MIX} --plan low:raw~middle:FT~high:RL | unknown group 'middle' & low, mid and high
plan repeats a group | rum | {ON} {MIX} --plan low:raw~mid:FT~mid:RL~high:RL | names the group mid twice
plan omits a group | rum | {ON} {MIX} --plan low:raw~high:RL | mid is missing & group:raw
plan omits all groups | rum | {ON} {MIX} --plan= | --plan is empty
all beside other groups | rum | {ON} {MIX} --plan all:NG~low:raw | low cannot stand beside all
setting the method lacks | rum | {ON} {MIX} --plan low:raw~mid:FT(msteps=3)~high:RL | FT has no setting 'msteps' & unlearn_lr
setting of a method without any | rum | {ON} {MIX} --plan low:raw(unlearn_lr=1)~mid:FT~high:RL | raw has no setting & none
setting of the wrong kind | rum | {ON} {MIX} --plan low:raw~mid:FT(unlearn_epochs=few)~high:RL | unlearn_epochs='few' & kind
setting of a fraction of an epoch | rum | {ON} {MIX} --plan low:raw~mid:FT(unlearn_epochs=1.5)~high:RL | unlearn_epochs='1.5'
switch that is neither | rum | {ON} {MIX} --plan low:raw~mid:SCRUB(rewind=perhaps)~high:RL | rewind='perhaps' & kind
setting out of bounds | rum | {ON} {MIX} --plan low:raw~mid:NG(alpha=1.5)~high:RL | --alpha must lie in [0, 1]; got 1.5
setting of unknown choice | rum | {ON} {MIX} --plan low:raw~mid:FT~high:RL(rl_labels=some) | --rl_labels must be one of & some
setting twice | rum | {ON} {MIX} --plan low:raw~mid:FT(unlearn_lr=1,unlearn_lr=2)~high:RL | unlearn_lr twice
setting without a value | rum | {ON} {MIX} --plan low:raw~mid:FT(unlearn_lr)~high:RL | no name=value
density for a method without masks | rum | {ON} {MIX} --plan low:raw~mid:RL_og(density=0.5)~high:RL | \
    RL_og takes no saliency mask
density for a flag's method without masks | rum | {ON} {MIX} --unlearn RL_og --density 0.5 | RL_og takes no saliency mask
density above 1 in a plan | rum | {ON} {MIX} --plan low:raw~mid:FT~high:RL(density=1.5) | density must lie in (0, 1]; got 1.5
density not a number in a plan | rum | {ON} {MIX} --plan low:raw~mid:FT~high:RL(density=nan) | density must lie in (0, 1]
density 0 | rum | {ON} {MIX} --unlearn RL --density 0 | --density must lie in (0
unreadable plan | rum | {ON} {MIX} --plan low=raw~mid:FT~high:RL | cannot read 'low=raw & group:METHOD
plan with an open bracket | rum | {ON} {MIX} --plan low:raw~mid:FT(unlearn_lr=1~high:RL | cannot read 'mid:FT(
plan without spaces | rum | {ON} {MIX} --plan low:raw,mid:FT,high:RL | cannot read 'low:raw,mid
retrain in a plan | rum | {ON} {MIX} --plan low:raw~mid:retrain~high:RL | retrain starts from new weights & another method
retrain on every group | rum | {ON} {MIX} --unlearn retrain | main_rum.py takes raw & main_forget.py --unlearn retrain
plan and its name | rum | {ON} {MIX} --plan low:raw~mid:FT~high:RL --plan_name rum | --plan is a whole plan & --plan_name
plan and a method | rum | {ON_RAW} {MIX} --plan low:raw~mid:FT~high:RL | --unlearn names one method & leave --unlearn
published plan and a method | rum | {ON_RAW} {MIX} --plan_name rum | --unlearn names one method & leave --unlearn
vanilla without a method | rum | {ON} {MIX} --plan_name vanilla | --plan_name vanilla needs --unlearn
same on each without a method | rum | {ON} {MIX} --plan_name rumf | --plan_name rumf needs --unlearn
unknown plan | rum | {ON} {MIX} --plan_name best | --plan_name must be one of rumf, rum, vanilla & best
vanilla and shuffled | rum | {ON_RAW} {MIX} --plan_name vanilla --shuffle | --shuffle is about groups & vanilla
one step and shuffled | rum | {ON} {MIX} --plan all:raw --shuffle | --shuffle is about groups
order with a group missing | rum | {ON_RAW} {MIX} --order low,mid | --order low,mid & once each
order with a group twice | rum | {ON_RAW} {MIX} --order low,mid,mid | --order low,mid,mid & once each
order of unknown groups | rum | {ON_RAW} {MIX} --order low,mid,top | --order must be one of low, mid, high & top
order of a written plan | rum | {ON} {MIX} --plan low:raw~mid:FT~high:RL --order high,mid,low | --order & its own order
budget of groups | rum | {ON_RAW} {MIX} --budget single | --budget is of --plan_name vanilla
mask mode without masks | rum | {ON_RAW} {MIX} --mask_mode published | --mask_mode & --density
flag of a method that is not there | rum | {ON} {MIX} --plan_name rum --msteps 3 | --msteps & belongs to SCRUB
nothing to refine by | rum | {ON_RAW} {SOME} | by what to refine & --mem mix & --mem_proxy & --scores & --shuffle
forget set of two examples | rum | {ON_RAW} --num_indexes_to_replace 2 --scores {scores} | 2 examples has no thirds & three
forget set of two shuffled | rum | {ON_RAW} --num_indexes_to_replace 2 --shuffle | 2 examples has no thirds
chunk to be refined | rum | {ON_RAW} {SOME} --group_index 4 --scores {chunks} | by what to refine
class to be refined by chunks | rum | {ON_RAW} --class_to_replace 1 --mem_proxy es --scores {chunks} | orders no examples
# requests
requests missing | rum | {ON_RAW} --shuffle --requests {tmp}/no.json | cannot read --requests & no.json & list of lists
requests broken | rum | {ON_RAW} --shuffle --requests {broken_json} | cannot read --requests
requests are not lists | rum | {ON_RAW} --shuffle --requests {flat_requests} | one or more lists
request empty | rum | {ON_RAW} --shuffle --requests {empty_request} | one or more lists
requests overlap | rum | {ON_RAW} --shuffle --requests {overlapping} | request 2 & an earlier one
requests outside training | rum | {ON_RAW} --shuffle --requests {outside} | 1 examples of request 2 & no training examples
requests of everything | rum | {ON_RAW} --shuffle --requests {everything} | whole training set & fewer
requests that are too small | rum | {ON_RAW} --shuffle --requests {small_request} | 2 examples has no thirds
requests and a number | rum | {ON_RAW} {SOME} --shuffle --requests {requests} | --requests & --num_indexes_to_replace away
requests and a group | rum | {ON_RAW} {MIX} --requests {requests} | --requests & --mem away
requests and a class | rum | {ON_RAW} --class_to_replace 1 --shuffle --requests {requests} | --class_to_replace away
requests and a file | rum | {ON_RAW} --forget_index {index} --shuffle --requests {requests} | --forget_index away
requests with nothing to refine by | rum | {ON_RAW} --requests {requests} | by what to refine
# scores to be made
unknown score | memorization | --checkpoint {run} --score c_score | c_score & memorization & confidence
flag of another score | memorization | --checkpoint {run} --score confidence --es_chunks 4 | --es_chunks & belongs to es
"""
CASES = {line.split(" | ")[0]: [part.strip() for part in line.split(" | ")[1:]]
         for line in TABLE.replace("\\\n", "").splitlines() if " | " in line}


class GroupRoom(Room):
    """Adds files of scores, chunks and requests."""

    def __init__(self, tmp: Path, runs: Path) -> None:
        super().__init__(tmp, runs)
        on = f"--checkpoint {self.original.folder}"
        self.update(ON=on, ON_RAW=f"{on} --unlearn raw", ON_RL=f"{on} --unlearn RL --unlearn_epochs 1",
                    HIGH="--mem high --num_indexes_to_replace 20 --scores",
                    MIX=f"--mem mix --num_indexes_to_replace 30 --scores {write_scores(self.root / 'mix.npz', 1)}")
        self.candidates = digits().candidates
        self.y, self.total = self.candidates.y, len(self.candidates.y)
        self.random = np.random.default_rng(8)

    def scores(self, **changed: Any) -> Path:
        return write_scores(self.root / "scores.npz", 1, **changed)

    def changed(self, at: list[int], value: float) -> Path:
        values = self.random.random(self.total)
        values[self.candidates.train[at]] = value
        return self.scores(memorization=values)

    # scores
    def other_labels(self) -> Path:
        return self.scores(labels=np.roll(self.y, 1))

    def other_images(self) -> Path:
        return self.scores(images_key=np.array("0123456789ab"))

    def shorter(self) -> Path:
        return self.scores(memorization=self.random.random(self.total - 1), labels=self.y[:-1])

    def shorter_alone(self) -> Path:
        return self.scores(memorization=self.random.random(self.total - 1), labels=None, images_key=None)

    def published_labels(self) -> Path:
        return self.scores(memorization=None, labels=None, images_key=None, tr_mem=self.random.random(self.total),
                           tr_labels=self.y[::-1])

    def not_a_number(self) -> Path:
        return self.changed([17], np.nan)

    def infinite(self) -> Path:
        return self.changed([0, 9], -np.inf)

    def complex_scores(self) -> Path:
        return self.scores(memorization=self.random.random(self.total) + 0j)

    def above_one(self) -> Path:
        return self.changed([3], 1.5)

    def below_minus_one(self) -> Path:
        return self.changed([3], -1.5)

    def whole_numbers(self) -> Path:
        return self.scores(memorization=self.random.integers(0, 2, self.total))

    def all_the_same(self) -> Path:
        return self.scores(memorization=np.full(self.total, 0.25))

    def percent(self) -> Path:
        return self.scores(confidence=100 * self.random.random(self.total))

    def negative_entropy(self) -> Path:
        return self.scores(entropy=-self.random.random(self.total))

    def random_npz(self) -> Path:
        return self.bytes("random.npz", self.random.bytes(900))

    def halved_npz(self) -> Path:
        whole = self.scores().read_bytes()
        return self.bytes("half.npz", whole[: len(whole) // 2])

    def lone_array(self) -> Path:
        np.save(self.root / "scores.npy", self.random.random(self.total))
        return self.root / "scores.npy"

    def flat_scores(self) -> Path:
        return self.scores(memorization=self.random.random((self.total, 2)))

    def wordy_scores(self) -> Path:
        return self.scores(memorization=np.array(["high"] * self.total))

    def pickled_scores(self) -> Path:
        return self.scores(memorization=np.array([None] * self.total))

    def pickled_labels(self) -> Path:
        return self.scores(labels=np.array([None] * self.total))

    def two_pools(self) -> Path:
        for name in ("first", "second"):
            memorization_run(self.root, name, self.random.random(self.total), name, 4)
        return self.root

    def index(self) -> Path:
        return self.array(*self.candidates.train[:9])

    # chunks
    def chunks(self, count: int = 15, **changed: np.ndarray) -> Path:
        write_chunks(self.root / "chunks.npz", self.candidates, self.random, count, **changed)
        return self.root / "chunks.npz"

    def few_chunks(self) -> Path:
        return self.chunks(4)

    def short_chunks(self) -> Path:
        return self.chunks(es=np.zeros(self.total - 1))

    def torn_chunks(self) -> Path:
        return self.chunks(group=np.zeros(self.total - 1, np.int64))

    def pickled_chunks(self) -> Path:
        return self.chunks(distance=np.array([None] * self.total))

    def values_alone(self) -> Path:
        return self.scores(es=np.zeros(self.total))

    # requests
    def asked(self, *requests: Any) -> Path:
        return self.bytes("requests.json", json.dumps(requests).encode())

    def training(self, start: int, end: int) -> list[int]:
        return self.candidates.train[start:end].tolist()

    def requests(self) -> Path:
        return self.asked(self.training(0, 5), self.training(5, 9))

    def broken_json(self) -> Path:
        return self.bytes("requests.json", b"[[1, 2")

    def flat_requests(self) -> Path:
        return self.asked(*self.training(0, 5))

    def empty_request(self) -> Path:
        return self.asked(self.training(0, 5), [])

    def overlapping(self) -> Path:
        return self.asked(self.training(0, 5), self.training(4, 9))

    def outside(self) -> Path:
        validation = np.setdiff1d(np.arange(self.total), self.candidates.train)
        return self.asked(self.training(0, 5), [*self.training(5, 9), int(validation[0])])

    def everything(self) -> Path:
        return self.asked(self.training(0, 200), self.training(200, self.total))

    def small_request(self) -> Path:
        return self.asked(self.training(0, 5), self.training(5, 7))


@pytest.fixture
def room(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> GroupRoom:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return GroupRoom(tmp_path, library)


def test_no_case_hides_another() -> None:
    assert len(CASES) >= 100 and len(CASES) == sum(" | " in line for line in TABLE.replace("\\\n", "").splitlines())


@pytest.mark.parametrize("wrong", CASES)
def test_bad_input_of_groups_and_plans(wrong: str, room: GroupRoom, capsys: pytest.CaptureFixture[str]) -> None:
    stage, line, words = CASES[wrong]
    typed = [word.replace("~", " ") for word in line.format_map(room).split()]
    said = message(NAMES[stage], typed, room, capsys)
    assert not [word for word in words.split(" & ") if word not in said], said
