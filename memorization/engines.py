"""Three ways to train the models of a pool: one after another, K at once, and a process for each core or GPU.

All three see the same models: a model's number alone decides its subset, its initialisation and its batches, and the
stack (memorization/stack.py) is trained by the same ``Descent``. What differs is rounding (tests state how much).

Which is fastest was measured on a CPU (``python -m benchmarks pool``): a process for each core, while stacking costs
more than it saves (grouped convolutions). On a GPU the launches of a small network's kernels cost more
than the kernels, so that K models at once should win there: a prediction, which nobody has measured.

Shapes: K models, B images in a batch, N images, C classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import models
from dataset import Batch, Data, Loader
from memorization.stack import Stack
from models import ModelConfig
from trainer import SCHEDULES, Descent, ScheduleConfig, predict
from utils import BadInput, CannotWrite, Runtime, hp, say
from utils.signals import deaf_children

Subset = Callable[[int], np.ndarray]  # a model's number -> int64 [n], the training images it sees
FILLED = 0.8  # share of a GPU's memory that a stack may fill at its peak: the rest is for the context and for fragments
PACE = 64  # images in a step of the throwaway model on a CPU, where a whole batch could take half a minute


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(ScheduleConfig):
    """How each model of a pool is trained; the defaults are Feldman and Zhang's, as re-implemented for RUM.

    That code counts ``epoch > 15, 20, 25`` from 0, so the rate has fallen in the epochs 16, 21 and 26.
    """

    pool_epochs: int = hp(30, "epochs of each model", low=1)
    pool_lr: float = hp(0.01, "learning rate", above=0)
    pool_batch: int = hp(512, "examples in a training step", low=2)
    early_epochs: int = hp(0, "epochs in which a whitening layer's bias trains; 0: in all", low=0)
    label_smoothing: float = hp(0.0, "share of the label spread over all classes", low=0, below=1)
    schedule: str = hp("step", "the rate over the epochs", choices=SCHEDULES)
    decreasing_lr: tuple[int, ...] = hp((16, 21, 26), "epochs at which schedule step multiplies the rate by lr_gamma", low=0)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every model of a pool shares. dtype: of weights and images; float64 in tests alone."""

    data: Data
    model: ModelConfig
    recipe: Recipe
    rt: Runtime
    dtype: torch.dtype = torch.float32

    def new(self, number: int, subset: np.ndarray | None = None) -> nn.Module:
        """The model as it starts; of the images it sees those of its subset alone."""
        return models.new(self.model, self.data, self.rt, f"pool/{number}", seen=subset).to(dtype=self.dtype)

    def loader(self, number: int, subset: np.ndarray) -> Loader:
        """The model's batches, in an order of its own; without augmentation unless the data have it."""
        images, purpose = self.data.images, f"pool/{number}"
        index = torch.from_numpy(subset).to(images.home)
        order = self.rt.generator(f"order/{purpose}")
        augment = images.augmentation(self.rt, purpose) if self.data.aug else None
        return Loader(images, index, images.y[index], self.recipe.pool_batch, order, augment)

    def fit(self, model: nn.Module, batches: Any, loss: Callable[[nn.Module, Batch], Tensor], purpose: str) -> None:
        lr, epochs = self.recipe.pool_lr, self.recipe.pool_epochs
        opt = Descent(model, self.recipe, lr=lr, epochs=epochs, rt=self.rt, purpose=purpose)
        for opt.at in range(self.recipe.pool_epochs):
            opt.epoch(batches, loss)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(batch.x.to(self.dtype)).to(self.dtype)
        return F.cross_entropy(logits, batch.y, label_smoothing=self.recipe.label_smoothing)

    def stacked_loss(self, stack: nn.Module, batch: Batch) -> Tensor:
        """The sum of the models' mean losses, so that each gets its own gradient."""
        logits = stack(batch.x.to(self.dtype)).to(self.dtype)
        smoothing = self.recipe.label_smoothing
        return F.cross_entropy(logits.flatten(0, 1), batch.y.t().flatten(), label_smoothing=smoothing) * len(batch.y)

    def evaluate(self, model: nn.Module) -> dict[str, Tensor]:
        """Logits float32 of all training and all test images: [N, C] of a model, [N, K, C] of a stack."""
        images, count = self.data.images, model.count if isinstance(model, Stack) else 1
        every, width = torch.arange(len(images.y), device=images.home), max(1, images.eval_batch // count)
        loaders = {"train": Loader(images, every, images.y, width), "test": self.data.loader("test", batch_size=width)}
        return {part: predict(model, loader, self.rt)[0] for part, loader in loaders.items()}


class Trained(NamedTuple):
    """A model's number, its logits {"train": float32 [N, C], "test": ...}, and its seconds (a share of its stack's)."""

    number: int
    logits: dict[str, Tensor]
    seconds: float


@contextlib.contextmanager
def naming(numbers: Sequence[int]) -> Iterator[None]:
    """Errors about the models of these numbers say so."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"model {', '.join(map(str, numbers))} of the pool: {error}") from None


# -------------------------------------------------------------------------------------------------- one after another


def train_one(setup: Setup, number: int, subset: np.ndarray) -> nn.Module:
    """Model ``number``, trained on its subset (int64 [n])."""
    model = setup.new(number, subset)
    with naming([number]):
        setup.fit(model, setup.loader(number, subset), setup.loss, f"pool/{number}")
    return model


def serial(setup: Setup, subset: Subset, numbers: Iterable[int]) -> Iterator[Trained]:
    """One model after another."""
    for number in numbers:
        start = time.perf_counter()
        logits = setup.evaluate(train_one(setup, number, subset(number)))
        setup.rt.drain()
        yield Trained(number, logits, time.perf_counter() - start)


# ------------------------------------------------------------------------------------------------------------ K at once


class Together:
    """The batches of K loaders side by side: x float [K, B, 3, H, W], y and index int64 [K, B].

    Raises:
        BadInput: the loaders have different numbers of examples.
    """

    def __init__(self, loaders: Sequence[Loader]) -> None:
        sizes = {loader.size for loader in loaders}
        if len(sizes) > 1:
            raise BadInput(f"models of one stack need subsets of one size; these have {min(sizes)} to {max(sizes)} examples: "
                           "use --engine serial or processes")
        self.loaders = loaders

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[Batch]:
        for batches in zip(*self.loaders, strict=True):
            yield Batch(*(torch.stack(parts) for parts in zip(*batches, strict=True)))


@contextlib.contextmanager
def graphed(stack: Stack, setup: Setup, sample: Tensor) -> Iterator[None]:
    """Replay forward and backward pass from CUDA graphs inside the block, for batches of the sample's shape [K, B, ...].

    Other shapes (a last, smaller batch) and evaluation run as ever. Where the capture fails, a notice says so and all
    steps run as ever. Written for a GPU and not tried on one yet, so it is only used where it is asked for.
    """
    plain, kept = stack.forward, [value.clone() for value in stack.buffers()]
    try:
        # capture forbids autocast's cache of weights, which a replay could not refresh
        with torch.autocast("cuda", torch.bfloat16, enabled=setup.rt.bf16, cache_enabled=False):
            stack.train()
            torch.cuda.make_graphed_callables(stack, (sample.to(setup.dtype),))
    except (RuntimeError, AssertionError) as error:
        say(f"notice: no CUDA graph could be captured ({str(error).splitlines()[0]}); the steps run without")
        stack.forward = plain
    quick = stack.forward
    for value, saved in zip(stack.buffers(), kept, strict=True):  # the capture's trial runs moved running statistics
        value.copy_(saved)
    stack.forward = lambda x: quick(x) if stack.training and x.shape == sample.shape else plain(x)
    try:
        yield
    finally:
        del stack.forward  # a copy of the stack would go on calling this one's


def train_stack(setup: Setup, numbers: Sequence[int], subsets: Sequence[np.ndarray], graphs: bool = False) -> Stack:
    """The models ``numbers``, trained at once on their subsets (int64 [n] each, of one size)."""
    batches = Together([setup.loader(number, subset) for number, subset in zip(numbers, subsets, strict=True)])
    singles = [setup.new(number, subset) for number, subset in zip(numbers, subsets, strict=True)]
    stack = Stack(singles, setup.rt.bf16)
    record: contextlib.AbstractContextManager = contextlib.nullcontext()
    if graphs and setup.rt.cuda:
        width, images = min(setup.recipe.pool_batch, len(subsets[0])), setup.data.images
        shape = (len(numbers), width, 3, *images.x.shape[1:3])
        record = graphed(stack, setup, torch.zeros(shape, device=images.device))
    with record, naming(numbers):
        setup.fit(stack, batches, setup.stacked_loss, "pool")  # without dropout, which a stack refuses
    return stack


def stacked(setup: Setup, subset: Subset, numbers: Iterable[int], size: int, graphs: bool = False) -> Iterator[Trained]:
    """``size`` models at once; those of one stack have subsets of one size, so where sizes differ, stacks are smaller."""
    waiting: dict[int, list[int]] = {}
    for number in numbers:
        waiting.setdefault(len(subset(number)), []).append(number)
    for alike in waiting.values():
        while alike:
            group, start = alike[:size], time.perf_counter()
            logits = within_memory(lambda group=group: setup.evaluate(
                train_stack(setup, group, [subset(number) for number in group], graphs)))
            if logits is None:
                size = _fewer(len(group), len(group) // 2, setup)
                continue
            setup.rt.drain()
            seconds = (time.perf_counter() - start) / len(group)
            for place, number in enumerate(group):
                yield Trained(number, {part: value[:, place] for part, value in logits.items()}, seconds)
            alike = alike[len(group) :]


def within_memory(work: Callable[[], Any]) -> Any:
    """What it gives, or None where the GPU's memory did not hold it; then what it held is free again."""
    with contextlib.suppress(torch.OutOfMemoryError):
        return work()
    torch.cuda.empty_cache()  # once the error, whose frames hold the tensors, is gone
    return None


def _fewer(count: int, left: int, setup: Setup) -> int:
    """``left`` models at once, which is said.

    Raises:
        BadInput: there are none left.
    """
    if not left:
        raise BadInput("the GPU's memory does not hold one model in training: use a smaller --pool_batch than "
                       f"{setup.recipe.pool_batch}, or another GPU; what is finished stays")
    say(f"notice: {count} models at once do not fit into the GPU's memory; going on with {left}")
    return left


# ------------------------------------------------------------------------------------------------------------ processes


def spread(work: Callable[[Any], Callable[[int], float]], order: Any, numbers: Sequence[int],
           environments: Sequence[dict[str, str]]) -> Iterator[tuple[int, float]]:
    """Hand the numbers out to new processes, the next one to whoever is free; (number, seconds) as each is done.

    Args:
        work: a module's function; each process calls it once with ``order`` and then what it gave, for each number.
        environments: one process for each, with these variables added; it computes on one thread.

    Raises:
        BadInput: one of a process, or a process that was killed. All are stopped then, as they are on Ctrl-C.
    """
    context, todo = multiprocessing.get_context("spawn"), list(numbers)
    processes: dict[Connection, Any] = {}
    try:
        for environment in environments[: len(todo)]:
            ours, theirs = context.Pipe()
            processes[ours] = context.Process(target=_worker, args=(theirs, work, order, environment), daemon=True)
            with deaf_children():
                processes[ours].start()
            theirs.close()
            ours.send(todo.pop(0))
        while processes:
            for ours in wait(list(processes)):
                yield _answer(ours, processes[ours])
                if todo:
                    ours.send(todo.pop(0))
                else:
                    ours.close()
                    processes.pop(ours).join()
    finally:
        for process in processes.values():
            if process.pid is not None:  # else it could not be started, and that is the error to be seen
                process.terminate()
                process.join()


def _answer(ours: Connection, process: Any) -> tuple[int, float]:
    try:
        kind, content = ours.recv()
    except (EOFError, ConnectionResetError):
        process.join()
        raise BadInput(f"a process of the pool ended with code {process.exitcode}, as it does when memory runs out; "
                       "run again with fewer --pool_workers, and what is finished stays") from None
    if kind == "done":
        return content
    raise {"bad": BadInput, "full": CannotWrite, "failed": RuntimeError}[kind](content)


def _worker(theirs: Connection, work: Callable[[Any], Callable[[int], float]], order: Any,
            environment: dict[str, str]) -> None:
    os.environ.update(environment)  # before CUDA is first touched
    torch.set_num_threads(1)
    try:
        do = work(order)
        while True:
            number = theirs.recv()
            theirs.send(("done", (number, do(number))))
    except (EOFError, ConnectionResetError, BrokenPipeError):  # nothing left to do, or the parent is gone
        return
    except torch.OutOfMemoryError:
        theirs.send(("bad", "the GPU's memory does not hold a model of each process; run again with fewer --pool_workers, and "
                     "what is finished stays"))
    except CannotWrite as error:
        theirs.send(("full", str(error)))
    except BadInput as error:
        theirs.send(("bad", str(error)))
    except Exception as error:
        theirs.send(("failed", f"{type(error).__name__}: {error}"))


# ------------------------------------------------------------------------------------------------------------- estimate


def pace(setup: Setup, subset: np.ndarray, size: int = 1) -> float:
    """Seconds that one training step spends on one image of one model, from two steps of throwaway models.

    Args:
        size: how many are trained at once; 1: without a stack.
    """
    width = min(setup.recipe.pool_batch if setup.rt.cuda else PACE, len(subset))
    trial = dataclasses.replace(setup, recipe=dataclasses.replace(setup.recipe, pool_batch=width))
    loaders = [trial.loader(-1 - k, subset[: 2 * width]) for k in range(size)]
    singles = [trial.new(-1 - k) for k in range(size)]
    model, batches, loss = (singles[0], loaders[0], trial.loss) if size == 1 else (
        Stack(singles, trial.rt.bf16), Together(loaders), trial.stacked_loss)
    opt = Descent(model, trial.recipe, lr=1e-6, epochs=1, rt=trial.rt, purpose="trial")
    opt.epoch([next(iter(batches))], loss)  # the first step chooses kernels
    trial.rt.drain()
    start = time.perf_counter()
    opt.epoch(batches, loss)
    trial.rt.drain()
    return (time.perf_counter() - start) / loaders[0].size / size


def fitting(setup: Setup, subset: np.ndarray, size: int) -> tuple[int, float]:
    """How many models, of ``size`` that are wanted, can be trained at once, and the pace of so many; from their real steps.

    On a GPU, as many as leave a part of its memory free by the peak of these steps, half of them where they did not fit.

    Raises:
        BadInput: the GPU's memory does not hold one.
    """
    while True:
        if setup.rt.cuda:
            torch.cuda.reset_peak_memory_stats(setup.rt.device)
        each = within_memory(lambda size=size: pace(setup, subset, size))
        fits = size // 2 if each is None else size
        if each is not None and setup.rt.cuda:
            room = FILLED * torch.cuda.mem_get_info(setup.rt.device)[1]
            fits = max(1, min(size, int(size * room / max(1, torch.cuda.max_memory_allocated(setup.rt.device)))))
        if fits == size:
            return size, each
        size = _fewer(size, fits, setup)
