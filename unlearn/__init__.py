"""The methods: one function, one settings class and one ``@register`` each; ``METHODS`` holds them by name."""

from unlearn import distill, finetune, gradient, label
from unlearn.registry import METHODS, Method, SgdConfig, Task, register

__all__ = ["METHODS", "Method", "SgdConfig", "Task", "distill", "finetune", "gradient", "label", "register"]
