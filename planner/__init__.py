"""Pick a quantization format for every tensor of a GGUF model under a size budget, and write the model.

    import planner

    with planner.open_state("model.planner", create=True) as state:
        state.measure("model-f16.gguf", imatrix="imatrix.gguf")
        plan = state.solve(budget="23.85GB")
    planner.quantize("model-f16.gguf", plan.recipe, "model.gguf")

Names are those of the command line, and so are options, with `_` for `-`. Whatever is raised on purpose is a
`PlannerError`; `planner.errors` has its kinds. Modules below this one may change between releases.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from planner.version import __version__

if TYPE_CHECKING:
    from planner import errors
    from planner.api.compare import Comparison, compare
    from planner.api.evaluate import Evaluation, evaluate
    from planner.api.quantize import Quantized, quantize
    from planner.api.recipes import load_recipe
    from planner.api.state import State, open_state
    from planner.errors import PlannerError
    from planner.gguf import Model, open_model
    from planner.plan.offer import Offer
    from planner.plan.plan import Plan
    from planner.recipe import Recipe
    from planner.report import role_table

__all__ = [
    "Comparison",
    "Evaluation",
    "Model",
    "Offer",
    "Plan",
    "PlannerError",
    "Quantized",
    "Recipe",
    "State",
    "__version__",
    "compare",
    "errors",
    "evaluate",
    "load_recipe",
    "open_model",
    "open_state",
    "quantize",
    "role_table",
]

# Where names are at home. Each is loaded when it is asked for: `planner --help` must not wait for numpy
_HOMES = {
    "Comparison": "planner.api.compare",
    "Evaluation": "planner.api.evaluate",
    "Model": "planner.gguf",
    "Offer": "planner.plan.offer",
    "Plan": "planner.plan.plan",
    "PlannerError": "planner.errors",
    "Quantized": "planner.api.quantize",
    "Recipe": "planner.recipe",
    "State": "planner.api.state",
    "compare": "planner.api.compare",
    "evaluate": "planner.api.evaluate",
    "load_recipe": "planner.api.recipes",
    "open_model": "planner.gguf",
    "open_state": "planner.api.state",
    "quantize": "planner.api.quantize",
    "role_table": "planner.report",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("planner.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
