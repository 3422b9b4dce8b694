"""Influence unlearning (IU): a step along the inverse Fisher matrix, by solvers that never form it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dataset import Loader
from unlearn import persample
from unlearn.presets import also
from unlearn.registry import Task, register
from utils import BadInput, Config, hp

# settings that are of some solvers only, and those of the exact mode only
OF_SOLVERS = {"woodbury": set(), "cg": {"solver_steps", "solver_tolerance"},
              "lissa": {"solver_steps", "solver_tolerance", "lissa_scale"}}
OF_EXACT = {"damping", "step_limit", "solver"} | OF_SOLVERS["lissa"]
POWER_STEPS = 200  # products at most for the largest eigenvalue, where the Gram matrix is not there


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfluenceConfig(Config):
    """Influence unlearning."""

    alpha: float = hp(1.0, "length of the step, in units of the estimated influence", low=0)
    damping: float = hp(1e-3, "added to the Fisher matrix's diagonal, as a share of its largest eigenvalue", above=0)
    step_limit: float = hp(0.02, "the step's largest length, as a share of that of the weights: where the model fits its "
                           "images the Fisher matrix vanishes and its inverse reaches too far", above=0)
    fisher_samples: int = hp(1000, "retain examples in the Fisher matrix, at most; drawn at random", low=1)
    solver: str = hp("woodbury", "woodbury: exact, by the examples' Gram matrix, whose gradients are computed again and again "
                     "where they do not fit into memory (a ResNet-18 on a CPU: take cg); cg: conjugate gradients, stores no "
                     "gradients; lissa: the series of (1 - F / scale)", choices=("woodbury", "cg", "lissa"))
    solver_steps: int = hp(1000, "steps of cg and lissa at most, each over all --fisher_samples", low=1)
    solver_tolerance: float = hp(1e-4, "share of the right side that cg and lissa may leave over", above=0, below=1)
    lissa_scale: float = hp(1.0, "scale of lissa, in damped largest eigenvalues; it takes several scale / damping steps",
                            above=0.5)
    wfisher_mode: str = hp("exact", "exact: the damped inverse; published: the recursion over the first --fisher_samples + 2 "
                           "retain examples, v plus a multiple of the first one's gradient", choices=("exact", "published"))

    def __post_init__(self) -> None:
        super().__post_init__()
        exact = self.wfisher_mode == "exact"
        idle = OF_SOLVERS["lissa"] - OF_SOLVERS[self.solver] if exact else OF_EXACT
        for field in dataclasses.fields(self):
            if field.name in idle and getattr(self, field.name) != field.default:
                where = f"--solver {self.solver}" if exact else "--wfisher_mode published"
                raise BadInput(f"--{field.name} has no effect under {where}; leave it away")


@register("wfisher", config=InfluenceConfig, uses="retain forget",
          source="Izzo et al., AISTATS 2021, arXiv:2002.10077; Koh and Liang, ICML 2017, arXiv:1703.04730; Fisher matrix for "
                 "Hessian: Singh and Alistarh, NeurIPS 2020, arXiv:2004.14340",
          departs="a true solution with the empirical Fisher matrix of examples drawn at random, damped by a share of its "
                  "largest eigenvalue, and a step no longer than a share of the weights; the published one (--wfisher_mode "
                  "published) moves along v and one example's gradient. --alpha defaults to 1 (published: 0.2); images in "
                  "order and without augmentation; weights that a mask holds are no part of the matrix nor of "
                  "v (published: so for pruned ones, a saliency mask cuts the finished step)")
def influence(task: Task, cfg: InfluenceConfig) -> None:
    """Take one step that estimates the optimum without the forget set, by the inverse Fisher matrix (IU)."""
    model, retain, forget = task.model, task.in_order("retain"), task.in_order("forget")
    free = persample.free_of(model, task.mask)
    if cfg.wfisher_mode == "published" and free is not None:  # a saliency mask cuts the finished step, in task.replace
        free |= persample.flat(p.detach() for p in model.parameters()) != 0  # what is held and 0 is pruned
    of_forget, of_retain = (persample.weighted(model, task.shown(part, "gradients"), free=free) for part in (forget, retain))
    total = forget.size + retain.size
    v = of_forget / total - of_retain * (forget.size / (total * retain.size))
    if not bool(v.isfinite().all()):
        task.refuse("the model's gradients are not finite, so there is no influence to take; start from another original")
    if cfg.wfisher_mode == "published":
        chosen = persample.piece(retain, 0, cfg.fisher_samples + 2)
        step, facts = cfg.alpha * published_recursion(model, chosen, v, cfg.fisher_samples, free), {}
    else:
        chosen = _drawn(task, retain, cfg.fisher_samples)
        found, top = SOLVERS[cfg.solver](task, chosen, v, cfg)
        step, facts = cfg.alpha * found, {"top_eigenvalue": top, "damping": cfg.damping * top}
        limit = cfg.step_limit * _length(model, free)
        if float(step.norm()) > limit:
            facts["unlimited_norm"] = float(step.norm())
            step = step * (limit / step.norm())
    moved = persample.split(model, step)
    task.replace({name: p.detach() + moved[name] for name, p in model.named_parameters()})
    task.log_whole(fisher_samples=chosen.size, step_norm=float(step.norm()), gradient_norm=float(v.norm()), **facts)


def _length(model: nn.Module, free: Tensor | None) -> float:
    """Norm of the weights that may move."""
    weights = persample.flat(p.detach() for p in model.parameters())
    return float((weights if free is None else weights * free).norm())


def _drawn(task: Task, retain: Loader, count: int) -> Loader:
    stream = task.generator("fisher")
    at = torch.randperm(retain.size, generator=stream)[:count].to(retain.index.device)
    return Loader(retain.images, retain.index[at], retain.labels[at], retain.batch_size)


def woodbury(task: Task, samples: Loader, v: Tensor, cfg: InfluenceConfig) -> tuple[Tensor, float]:
    """(damping I + G^T G / n)^-1 v = (v - G^T (n damping I + G G^T)^-1 G v) / damping, float64 [D], and the top eigenvalue.

    Here as in the other solvers, G's columns and v are 0 for weights that a mask holds: the inverse is that of the free
    weights' Fisher matrix, which is not the whole one's inverse cut to them.
    """
    free = persample.free_of(task.model, task.mask)
    kernel, along = persample.gram(task.model, samples, free=free), persample.along(task.model, samples, [v])
    top = _checked(task, top_eigenvalue(lambda x: kernel @ x / len(kernel), along[:, 0], 1e-9, 10_000))
    damping = cfg.damping * top
    share = coefficients(kernel, along, damping)
    if share is None:
        task.refuse(f"the damped Gram matrix is not positive definite: raise --damping {cfg.damping:g}")
    return (v - persample.weighted(task.model, samples, share, free)) / damping, top


def coefficients(kernel: Tensor, along: Tensor, damping: float) -> Tensor | None:
    """u = (n damping I + G G^T)^-1 G v, float64 [n], from the Gram matrix [n, n], overwritten, and G v [n, 1]; or None."""
    kernel.diagonal().add_(len(kernel) * damping)
    factor, failed = torch.linalg.cholesky_ex(kernel)
    return None if int(failed) else torch.cholesky_solve(along, factor)[:, 0]


def top_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor, tolerance: float, steps: int) -> float:
    """The largest eigenvalue of a positive semidefinite matrix by power iteration, until its estimate stands still.

    Args:
        product: of the matrix with a vector. start: float64, with a share of the eigenvector. tolerance: relative.
    """
    x, before = start / start.norm(), 0.0
    for _ in range(steps):
        y = product(x)
        found, length = float(x @ y), float(y.norm())
        if not length > 0 or abs(found - before) <= tolerance * found:  # no number, nothing there, or done
            return found
        x, before = y / length, found
    return before


def _checked(task: Task, top: float) -> float:
    if not 0 < top < float("inf"):
        task.refuse(f"the Fisher matrix's largest eigenvalue is {top:g}: the model's loss on the retain examples has no slope "
                    "to damp by; start from another original")
    return top


def _top(task: Task, samples: Loader, v: Tensor, free: Tensor | None) -> float:
    """Of F = G^T G / n, by products with it; to 1e-5 of its value where its first two eigenvalues are apart."""
    shown = task.shown(range(POWER_STEPS), "largest eigenvalue")
    steps = iter(shown)

    def product(x: Tensor) -> Tensor:
        next(steps)
        return fisher_product(task.model, samples, x, 0.0, free)

    return _checked(task, top_eigenvalue(product, v, 1e-6, POWER_STEPS))


def conjugate_gradients(task: Task, samples: Loader, v: Tensor, cfg: InfluenceConfig) -> tuple[Tensor, float]:
    """Solve (damping I + G^T G / n) x = v by products alone: x float64 [D], and the top eigenvalue."""
    x, left = torch.zeros_like(v), v.clone()
    toward, before, goal = left.clone(), float(v @ v), cfg.solver_tolerance**2 * float(v @ v)
    free = persample.free_of(task.model, task.mask)
    top = _top(task, samples, v, free)
    for _ in task.shown(range(cfg.solver_steps), "conjugate gradients"):
        if before <= goal:
            break
        product = fisher_product(task.model, samples, toward, cfg.damping * top, free)
        rate = before / float(toward @ product)
        x, left = x + rate * toward, left - rate * product
        now = float(left @ left)
        toward, before = left + now / before * toward, now
    if not before <= goal:
        task.refuse(f"cg leaves {(before / float(v @ v)) ** 0.5:.2g} of the right side after --solver_steps "
                    f"{cfg.solver_steps}: take more, or raise --damping or --solver_tolerance")
    return x, top


def lissa(task: Task, samples: Loader, v: Tensor, cfg: InfluenceConfig) -> tuple[Tensor, float]:
    """Solve the same by x <- v + (I - F / scale) x, whose limit is scale F^-1 v: x float64 [D], and the top eigenvalue.

    Agarwal et al., JMLR 2017, arXiv:1602.03943, with all samples in every step, so that it converges.
    """
    x, left, goal = v.clone(), v, cfg.solver_tolerance * float(v.norm())
    free = persample.free_of(task.model, task.mask)
    top = _top(task, samples, v, free)
    damping, scale = cfg.damping * top, cfg.lissa_scale * (1 + cfg.damping) * top
    for _ in task.shown(range(cfg.solver_steps), "LiSSA"):
        left = v - fisher_product(task.model, samples, x, damping, free) / scale
        if not goal < float(left.norm()) < 1e6 * float(v.norm()):  # done, or diverging, or no number any more
            break
        x = x + left
    if not float(left.norm()) <= goal:
        task.refuse(f"lissa leaves {float(left.norm()) / float(v.norm()):.2g} of the right side: if it is above 1, raise "
                    f"--lissa_scale {cfg.lissa_scale:g}; else take more --solver_steps (several times scale / damping, "
                    f"{scale / damping:.0f}), or raise --damping")
    return x / scale, top


SOLVERS = {"woodbury": woodbury, "cg": conjugate_gradients, "lissa": lissa}


def fisher_product(model: nn.Module, samples: Loader, v: Tensor, damping: float, free: Tensor | None = None) -> Tensor:
    """(damping I + G^T G / n) v, float64 [D]: one pass for G v, one for G^T of it; v is 0 where it is not ``free``."""
    share = persample.along(model, samples, [v])[:, 0] / samples.size
    return damping * v + persample.weighted(model, samples, share, free)


def published_recursion(model: nn.Module, samples: Loader, v: Tensor, count: int, free: Tensor | None = None) -> Tensor:
    """What the published "WoodFisher" returns, float64 [D]: v + c g_1, where g_1 is the first sample's gradient.

    Its o starts as g_1 and is only ever scaled, so that o = s g_1 and k = v + c g_1 throughout, and a sample enters by its
    products with g_1 and v alone: k <- k - (k.g) / (N + o.g) o and o <- o - (o.g) / (N + o.g) o, with N = ``count``.
    """
    first = persample.weighted(model, persample.piece(samples, 0, 1), free=free)
    products = persample.along(model, samples, [first, v]).tolist()
    s, c = 1.0, 0.0
    for with_first, with_v in products[1:]:
        below = count + s * with_first
        c -= (with_v + c * with_first) / below * s
        s -= s * with_first / below * s
    return v + c * first


# the Reminiscence project's names
also("Wfisher", "wfisher")
also("Woodfisher", "wfisher")
