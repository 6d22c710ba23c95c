"""What other quantizers read and write, one module a dialect."""

from __future__ import annotations

__all__: list[str] = []
