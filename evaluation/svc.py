"""The published RBF support vector attack, solved on a low-rank factor of its kernel.

The published attack is scikit-learn's ``SVC(C=3, gamma="auto", kernel="rbf")``: libsvm, quadratic in the rows, and
slowest where members and non-members overlap, which is the usual case. On probabilities its kernel is so smooth that a
few dozen landmarks (one-dimensional features) or a few hundred (probability vectors) reproduce it, and the same
objective (hinge loss, squared norm, free bias) on that factor costs time and memory linear in the rows.

A fit on the factor is accepted only if its duality gap is small, its decision values agree with the kernel itself on a
sample of rows, and hardly any of them are near zero. Everything else goes to libsvm; ``SvcAttack.solver`` says which
way was taken.
SciPy and scikit-learn are imported where they are used.

Shapes: n fitted examples, m examples to decide, d features, r landmarks (the rank of the factor).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from utils import BadInput

PENALTY = 3.0  # C of the published attack
FEW_ROWS = 1000  # up to so many distinct (row, label) pairs libsvm takes less time than a factor
MAX_RANK = 6.0  # times sqrt(n): libsvm costs about n², the factor n r² and more
KERNEL_TOLERANCE = {"line": 1e-7, "space": 1e-5}  # largest error in k(x, x) = 1; in one dimension landmarks are cheap
SMOOTHING = (0.3, 0.03, 3e-3, 3e-4)  # half-width of the rounded corner of the hinge, stage by stage
NEWTON_STEPS = 100  # in one stage; the hardest case measured took 30
GAP_TOLERANCE = 1e-4  # duality gap over objective; libsvm's own stopping rule leaves about as much
VALUE_TOLERANCE = 2e-3  # decision value on the factor against the kernel; libsvm's own tolerance moves it as much
UNDECIDED = 0.005  # share of rows that may lie within that tolerance of zero, where the sign says nothing
NEGLIGIBLE = 1e-15  # below it an entry of the factor is zero
CANDIDATES = 1500  # rows from which one round of the factorisation takes its landmarks
CHECKED_ROWS = 128  # rows whose decision value is compared with the kernel's


@dataclass(frozen=True)
class SvcAttack:
    """A fitted attack.

    Attributes:
        solver: "low-rank" (factor of the kernel), "weighted rows" (libsvm on the distinct rows, weighted by how often
            they occur) or "libsvm" (all rows: the factor was too large or its solution not certified).
    """

    solver: Literal["low-rank", "weighted rows", "libsvm"]
    _member: Callable[[np.ndarray], np.ndarray]

    def decide(self, features: np.ndarray) -> np.ndarray:
        """Whether each example is called a member: bool [m] of float features [m] or [m, d]."""
        return self._member(_as_rows(features))


def fit(features: np.ndarray, member: np.ndarray) -> SvcAttack:
    """The attack that tells members from non-members, as scikit-learn's ``SVC(C=3, gamma="auto")`` would.

    Args:
        features: float [n] or [n, d]; made for probabilities, entropies and the like. Not rescaled, as published.
        member: bool [n].

    Raises:
        BadInput: features that are not finite, or only members, or only non-members.
    """
    rows, member = _as_rows(features), np.asarray(member, dtype=bool)
    assert member.shape == (len(rows),), f"{len(rows)} rows but member has shape {member.shape}"
    if member.all() or not member.any():
        raise BadInput(f"the attack needs members and non-members; got {member.sum()} of {member.size} as members")
    distinct, counts = _distinct(rows, member)
    if distinct is not None:
        return SvcAttack("weighted rows", _libsvm(distinct[:, :-1], distinct[:, -1] > 0, counts))
    score = _low_rank(rows, member)
    if score is not None:
        return SvcAttack("low-rank", lambda new: score(new) > 0)
    return SvcAttack("libsvm", _libsvm(rows, member, None))


def _as_rows(features: np.ndarray) -> np.ndarray:
    rows = np.asarray(features, dtype=np.float64)
    rows = rows[:, None] if rows.ndim == 1 else rows
    assert rows.ndim == 2, f"features must be [n] or [n, d]; got {rows.shape}"
    if not np.isfinite(rows).all():
        raise BadInput("the attack's features hold NaN or infinite values; the model's outputs cannot be right")
    return rows


def _distinct(rows: np.ndarray, member: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Distinct (row, label) pairs [u, d + 1] and how often each occurs [u]; (None, None) where they are many."""
    labelled = np.column_stack([rows, member])
    # sorting whole rows is dear; where the first thousands hardly repeat, there is no need
    if len(np.unique(labelled[: 2 * FEW_ROWS], axis=0)) > FEW_ROWS:
        return None, None
    pairs, counts = np.unique(labelled, axis=0, return_counts=True)
    return (pairs, counts) if len(pairs) <= FEW_ROWS else (None, None)


def _libsvm(rows: np.ndarray, member: np.ndarray, weights: np.ndarray | None) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.svm import SVC

    return SVC(C=PENALTY, gamma="auto", kernel="rbf").fit(rows, member, sample_weight=weights).predict


def _kernel(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """exp(-|x - x'|² / d) of every pair: gamma="auto" is one over the number of features."""
    if rows.shape[1] == 1:
        distance = np.square(rows - others.T)
    else:
        distance = (rows * rows).sum(1)[:, None] + (others * others).sum(1) - 2 * (rows @ others.T)
    distance *= -1 / rows.shape[1]
    return np.exp(distance, out=distance)


class _Factor:
    """A factor with kernel ~ factor @ factor.T, by pivoted Cholesky in blocks (Fine and Scheinberg, JMLR 2001).

    Each round takes its landmarks by a complete pivoted Cholesky among the worst represented rows, so that the work
    over all rows is in matrix products: O(n r²) time, O(n r) memory.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self.blocks: list[tuple[np.ndarray, np.ndarray]] = []  # landmarks [s, d], their Cholesky factor [s, s]
        self.landmark_rows: list[np.ndarray] = []  # factor rows of earlier blocks' columns at the landmarks
        self.train = np.empty((len(rows), 0))
        self.complete = self._grow(rows)

    def _grow(self, rows: np.ndarray) -> bool:
        from scipy.linalg.lapack import dpstrf

        error, tolerance = np.ones(len(rows)), KERNEL_TOLERANCE["line" if rows.shape[1] == 1 else "space"]
        chosen = np.unique(np.linspace(0, len(rows) - 1, CANDIDATES).astype(np.int64))
        while error.max() > tolerance:
            among = _kernel(rows[chosen], rows[chosen]) - self.train[chosen] @ self.train[chosen].T
            lower, order, rank, _ = dpstrf(among, lower=1, tol=tolerance)
            if rank == 0 or self.train.shape[1] + rank > MAX_RANK * len(rows) ** 0.5:
                return False
            pivots = chosen[order[:rank] - 1]
            self.landmark_rows.append(self.train[pivots])
            self.blocks.append((rows[pivots], np.tril(lower[:rank, :rank])))
            self.train = np.hstack([self.train, self._columns(rows, self.train, len(self.blocks) - 1)])
            error = 1 - np.einsum("ij,ij->i", self.train, self.train)
            chosen = np.argsort(-error, kind="stable")[:CANDIDATES]
            chosen = chosen[error[chosen] > tolerance]
        return True

    def _columns(self, rows: np.ndarray, before: np.ndarray, block: int) -> np.ndarray:
        from scipy.linalg import solve_triangular

        landmarks, lower = self.blocks[block]
        rest = _kernel(landmarks, rows) - self.landmark_rows[block] @ before.T
        columns = solve_triangular(lower, rest, lower=True, overwrite_b=True, check_finite=False).T
        # far from a landmark there are only subnormal numbers, which cost some processors ten times the work
        columns[np.abs(columns) < NEGLIGIBLE] = 0
        return columns

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The factor's rows of new examples: float64 [m, r]."""
        columns = np.empty((len(rows), 0))
        for block in range(len(self.blocks)):
            columns = np.hstack([columns, self._columns(rows, columns, block)])
        return columns


def _low_rank(rows: np.ndarray, member: np.ndarray) -> Callable[[np.ndarray], np.ndarray] | None:
    """The decision function fitted on the factor, or None where the factor or the certificates fail."""
    factor = _Factor(rows)
    if not factor.complete:
        return None
    sign = np.where(member, 1.0, -1.0)
    weights, dual, gap = _solve(np.column_stack([factor.train, np.ones(len(rows))]), sign)

    def score(new: np.ndarray) -> np.ndarray:
        return factor.of(new) @ weights[:-1] + weights[-1]

    sample = rows[:: max(1, len(rows) // CHECKED_ROWS)]
    by_kernel = _kernel(sample, rows) @ (dual * sign) + weights[-1]
    error = np.abs(by_kernel - score(sample)).max()
    undecided = np.mean(np.abs(factor.train @ weights[:-1] + weights[-1]) < VALUE_TOLERANCE)
    certified = gap <= GAP_TOLERANCE and error <= VALUE_TOLERANCE and undecided <= UNDECIDED
    return score if certified else None


def _solve(design: np.ndarray, sign: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Minimise ½|w|² + C Σ max(0, 1 - yᵢ(xᵢw + b)) by Newton steps on hinges with an ever sharper corner.

    The corner is a parabola over 1 ± h (Chapelle, Neural Computation 2007); only rows on it enter the
    Hessian, so that late stages, where few are left, cost little more than a product with the design matrix.

    Args:
        design: float64 [n, r + 1], the last column ones (the bias, which is not penalised).
        sign: float64 [n], +1 members, -1 non-members.

    Returns:
        weights [r + 1], dual variables [n] in [0, C], and the duality gap as a share of the objective.
    """
    design = design * sign[:, None]
    weights, margin = np.zeros(design.shape[1]), np.zeros(len(design))
    reach = np.inf
    for half_width in SMOOTHING:
        for iteration in range(NEWTON_STEPS):
            # a sharper corner holds few of the rows at once that will end on it: the first step keeps the last one's
            corner = np.abs(1 - margin) < (half_width if iteration else reach)
            step, along, decrement = _newton_step(design, weights, margin, half_width, corner)
            if iteration and decrement <= 1e-14 * half_width * PENALTY * len(design):
                break
            length = _line_search(weights, step, margin, along, half_width) if iteration else 1.0
            weights, margin = weights + length * step, margin + length * along
        reach = half_width
    if not (np.abs(1 - margin) < half_width).any():
        shift = _middle_bias(sign * (1 - margin))
        weights[-1], margin = weights[-1] + shift, margin + shift * sign
    dual = _dual(margin, half_width)
    return weights, dual, _duality_gap(design, sign, weights, margin, dual)


def _middle_bias(to_margin: np.ndarray) -> float:
    """With no row on the margin every bias between two rows' is optimal; libsvm takes the middle, and so must we."""
    above, below = to_margin[to_margin > 0], to_margin[to_margin < 0]
    return float(above.min() + below.max()) / 2 if above.size and below.size else 0.0


def _dual(margin: np.ndarray, half_width: float) -> np.ndarray:
    """The dual variable of every row: minus the derivative of the rounded hinge, times C."""
    return PENALTY * np.clip((1 + half_width - margin) / (2 * half_width), 0, 1)


def _newton_step(
    design: np.ndarray, weights: np.ndarray, margin: np.ndarray, half_width: float, corner: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """The step for a given set of rows on the corner (bool [n]), its change of margin, and the slope along it."""
    from scipy.linalg import cho_factor, cho_solve

    penalised = np.ones(len(weights))
    penalised[-1] = 0
    slope = PENALTY * (1 + half_width - margin) / (2 * half_width)
    gradient = penalised * weights - design.T @ np.where(corner, slope, PENALTY * (margin < 1))
    curved = design[corner]
    hessian = curved.T @ curved * (PENALTY / (2 * half_width))
    # the bias is held by rows on the corner alone; where there are none, the line search bounds the step
    hessian[np.diag_indices_from(hessian)] += np.where(penalised > 0, 1.0, 1e-9 * PENALTY * len(design))
    step = -cho_solve(cho_factor(hessian, check_finite=False), gradient, check_finite=False)
    return step, design @ step, float(-(gradient @ step))


def _line_search(
    weights: np.ndarray, step: np.ndarray, margin: np.ndarray, along: np.ndarray, half_width: float
) -> float:
    """A length at which the slope along the step has all but gone; the objective is convex and piecewise quadratic."""
    linear, quadratic = weights[:-1] @ step[:-1], step[:-1] @ step[:-1]

    def slope(length: float) -> float:
        return linear + length * quadratic - _dual(margin + length * along, half_width) @ along

    low, at_low = 0.0, slope(0.0)
    enough, length = 0.1 * abs(at_low), 1.0
    at_high = slope(length)
    if at_high <= enough:
        return length
    high = length
    for _ in range(40):
        # regula falsi, kept off the ends: one end must not stay for ever
        share = min(max(at_low / (at_low - at_high), 0.05), 0.95)
        length = low + share * (high - low)
        value = slope(length)
        if abs(value) <= enough:
            break
        low, at_low, high, at_high = (length, value, high, at_high) if value < 0 else (low, at_low, length, value)
    return length


def _duality_gap(
    design: np.ndarray, sign: np.ndarray, weights: np.ndarray, margin: np.ndarray, dual: np.ndarray
) -> float:
    """How far the hinge objective (not the rounded one) can be above its minimum, as a share of it."""
    members, others = dual[sign > 0].sum(), dual[sign < 0].sum()
    # rounding leaves the two sums unequal; scaling the larger side down makes the dual point feasible
    balance = min(members, others) / np.where(sign > 0, members, others)
    feasible = dual * balance
    norm = np.square((design.T @ feasible)[:-1]).sum()
    primal = 0.5 * np.square(weights[:-1]).sum() + PENALTY * np.maximum(0, 1 - margin).sum()
    return float((primal - (feasible.sum() - 0.5 * norm)) / primal)
