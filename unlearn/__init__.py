"""The methods: one function, one settings class and one ``@register`` each; ``METHODS`` holds them by name."""

from unlearn import finetune, gradient, distill, label, boundary, unsir, influence, fisher, dampening  # isort: skip  (as in --list)
from unlearn import our, over  # isort: skip  (two phases; NAME_our of those above)
from unlearn.registry import METHODS, DescentConfig, Method, Task, method_list, method_rows, register

__all__ = ["METHODS", "DescentConfig", "Method", "Task", "boundary", "dampening", "distill", "finetune", "fisher", "gradient",
           "influence", "label", "method_list", "method_rows", "our", "over", "register", "unsir"]
