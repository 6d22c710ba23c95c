"""Pages of one file: HTML, style, script and data together, and a policy that lets them load nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files

__all__ = ["assembled"]

_PLACE = re.compile(r"\{\{(\w+)\}\}")


def assembled(package: str, scripts: Sequence[str], data: str, **parts: str) -> str:
    """Return the page.html of a package, with its style.css, its scripts in this order, `data`, which is JSON, and
    `parts`, which are HTML, where it names them.

    Nothing in `data` is ever read as HTML: in the page it is without `<`. Places are filled in one go, so that nothing
    in a part is taken for one.
    """

    def read(name: str) -> str:
        return files(package).joinpath(name).read_text(encoding="utf-8")

    style, script = read("style.css"), "\n".join(map(read, scripts))
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; base-uri 'none'; "
        "form-action 'none'"
    )
    every = {**parts, "policy": policy, "style": style, "script": script, "data": data.replace("<", "\\u003c")}
    return _PLACE.sub(lambda place: every[place[1]], read("page.html"))


def _digest(text: str) -> str:
    """Return the source expression of Content Security Policy for one inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
