"""What llama.cpp reserves for made-up models of some architectures, a line of JSON each, in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

from planner.fit import Context
from tests.fit import oracle
from tests.fit.made_up import metadata_of

CONTEXTS = (Context(4096), Context(1000, sequences=3), Context(6000, sequences=2, batch=256))


def reserved(model: Any, context: Context) -> oracle.Reserved:
    """What llama.cpp reserves for a context of ours."""
    return oracle.reserved(model, context.tokens, kv=context.kv, parallel=context.sequences, ubatch=context.batch)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with oracle.made_up(name, metadata_of(name)) as loaded:
            figures = [dataclasses.astuple(reserved(loaded, context)) for context in CONTEXTS]
        sys.stdout.write(json.dumps(figures) + "\n")
        sys.stdout.flush()
