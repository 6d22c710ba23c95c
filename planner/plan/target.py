"""What a file may lose at the most, where its size is what is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.errors import BudgetError, UsageError, option
from planner.plan.findings import Findings
from planner.plan.losses import Losses
from planner.plan.prediction import link_of
from planner.recipe import Recipe
from planner.terms import FamilyName

if TYPE_CHECKING:
    from planner.plan.assess import Assessment

__all__ = ["Aim", "Other", "Target", "aim_at", "assess_other", "unknown_loss"]


@dataclass(frozen=True, slots=True)
class Other:
    """Another file of the same model: a mix of llama.cpp, by its name alone, or the format of every tensor, which are
    of one family. `bytes` of the file, None where it has not been made."""

    label: str
    formats: Mapping[str, str] | None = None
    family: FamilyName = "gguf"
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """One of: the greatest `loss`; the greatest predicted KL divergence `kld` (nats per token); the file that it may
    lose no more `than`, by the same measure."""

    loss: float | None = None
    kld: float | None = None
    than: Other | None = None

    def __post_init__(self) -> None:
        """Raise UsageError unless one is given, and a number that can be reached."""
        names = [name for name in ("loss", "kld", "than") if getattr(self, name) is not None]
        if len(names) != 1:
            raise UsageError(
                f"{' and '.join(map(option, names)) or 'No target'}: a target is one of {option('loss')}, "
                f"{option('kld')} and {option('than')}.",
                "Give one of them.",
            )
        value = self.loss if self.kld is None else self.kld
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(f"{option(names[0], value)}: out of range.", "Give a number of at least 0.")

    @property
    def title(self) -> str:
        """The target in words."""
        if self.than is not None:
            return f"no worse than {self.than.label}"
        return f"KLD at most {self.kld:g}" if self.loss is None else f"loss at most {self.loss:g}"


@dataclass(frozen=True, slots=True)
class Aim:
    """A target as the greatest sum of losses, `most`; `other` is the file to be no worse than, assessed."""

    target: Target
    most: float
    other: Recipe | None = None


def aim_at(target: Target, findings: Findings, losses: Losses, *, rounded: Losses) -> Aim:
    """Work out the greatest loss that a target leaves. `losses` count for the file that is wanted; `rounded` are those
    with rounded activations, to which predictions are fitted.

    Raises UsageError for a divergence where no passes of the model say how large one is, and for a file with formats
    that were not measured, BudgetError for a divergence below any file's, and what `assess_other` raises.
    """
    if target.loss is not None:
        return Aim(target, target.loss)
    if target.than is not None:
        assessed = assess_other(target.than, findings, losses)
        if assessed.recipe.loss is None:
            raise unknown_loss(target.than, assessed)
        return Aim(target, assessed.recipe.loss, assessed.recipe)
    assert target.kld is not None
    link = link_of(findings, rounded)
    if link is None:
        raise UsageError(
            f"{option('kld', f'{target.kld:g}')}: how large a divergence is, is not known without passes of the model; "
            f"losses by {rounded.source} are up to scale.",
            "Run passes: planner sensitivity MODEL --text FILE; or make the imatrix with planner imatrix; or compare "
            f"with another file by the same measure, for example {option('than', 'Q4_K_M')}.",
        )
    most = link.loss_at(target.kld)
    if most is None:
        raise BudgetError(
            f"{option('kld', f'{target.kld:g}')} is below what any quantized file is expected to have, "
            f"{link.predict(0.0).kld:.2g}: what the engine adds by itself.",
            "Ask for more than that.",
        )
    return Aim(target, most)


def assess_other(other: Other, findings: Findings, losses: Losses) -> Assessment:
    """Return another file of the model as a recipe, with its loss by `losses`, None where a format that it has was not
    measured. Raises RecipeError for a file of another model."""
    from planner.plan.assess import assess  # loads what reads models, which other plans do not wait for
    from planner.plan.mixes import mix_formats

    formats = mix_formats(findings.inventory, other.label) if other.formats is None else other.formats
    return assess(findings.inventory, formats, losses, family=other.family, why=other.label)


def unknown_loss(other: Other, assessed: Assessment) -> UsageError:
    """Return the error for another file whose loss is not known."""
    return UsageError(f"The loss of {other.label} is not known.", assessed.notes[-1])
