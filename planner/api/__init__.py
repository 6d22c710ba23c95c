"""The library, which `import planner` offers: open a state, measure a model into it, solve, quantize, evaluate.

Options are called as the command line calls them, with `_` for `-`. Paths are texts or Paths; sizes are texts such as
"23.85GB", or bytes. What may be given once or several times (`pin`, `device`, ...) is one text or several. Progress is
told to a function of (what was done last, how much is done, of how much).
"""

from __future__ import annotations

__all__: list[str] = []
