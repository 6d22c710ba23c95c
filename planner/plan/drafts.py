"""A model as a plan sees it that leaves draft heads out."""

from __future__ import annotations

from planner.errors import StateFileError, UsageError, option
from planner.names.gguf import ahead, parse_name
from state import HEADLESS, Inventory

__all__ = ["check_dropped", "dropped_drafts", "without_drafts"]

_DROPPED = "drafts.dropped"  # of an inventory in memory: names, one a line


def without_drafts(inventory: Inventory) -> Inventory:
    """Return the model without its draft heads, as `planner.gguf.drafts` would write it; a model that has none as it
    is. Raises StateFileError where the state does not know how long the header then is, as those of before do not."""
    heads = ahead(tensor.name for tensor in inventory.tensors)
    if not heads:
        return inventory
    header = inventory.metadata.get(HEADLESS)
    if not isinstance(header, int):
        raise StateFileError(
            f"The state does not say what is left of {inventory.model_name} without its draft heads.",
            "Measure again, which adds that and keeps what is measured: planner measure MODEL. If that changes "
            "nothing, the heads are not the last blocks, and have to be kept.",
        )
    tensors = tuple(tensor for tensor in inventory.tensors if tensor.name not in heads)
    blocks = inventory.metadata.get("block_count", 0)
    left = (0 if isinstance(blocks, str) else int(blocks)) - len({parse_name(name).block for name in heads})
    metadata = {
        **inventory.metadata,
        "block_count": max(left, 0),
        "nextn_predict_layers": 0,
        _DROPPED: "\n".join(sorted(heads)),
    }
    return inventory.model_copy(update={"tensors": tensors, "header_bytes": header, "metadata": metadata})


def dropped_drafts(inventory: Inventory) -> list[str]:
    """Return the tensors of draft heads that a model was left without; none where all are there."""
    names = inventory.metadata.get(_DROPPED)
    return names.splitlines() if isinstance(names, str) else []


def check_dropped(inventory: Inventory, draft: str) -> None:
    """Raise UsageError for a request to leave heads out of a model that was read with them."""
    if draft == "drop" and ahead(tensor.name for tensor in inventory.tensors):
        raise UsageError("The model was read with its draft heads.", f"Read it with {option('draft', 'drop')} too.")
