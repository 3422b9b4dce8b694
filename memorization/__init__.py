"""How much a model memorizes each training example: scores from a pool of models, proxies of them, entanglement."""

from memorization import feldman, proxies, entanglement  # isort: skip  (the order of --list)
from memorization.registry import SCORES, Job, Score

__all__ = ["SCORES", "Job", "Score", "entanglement", "feldman", "proxies"]
