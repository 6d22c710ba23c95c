"""From losses to the KL divergences expected of files, where passes of the model, or reach, tell their scale."""

from __future__ import annotations

from planner.plan.findings import Findings
from planner.plan.losses import Losses, calibration
from planner.sensitivity import Link, fit_link

__all__ = ["link_of"]


def link_of(findings: Findings, losses: Losses) -> Link | None:
    """Return what ties losses to divergences; None where these are up to scale: without passes, or by another source
    than `structure` with reach. The files that it is fitted to were evaluated on a CPU, so `losses` count rounded
    activations, wherever the file that it is asked about will run."""
    if losses.source == "measured":
        return fit_link(calibration(findings.passes, findings.inventory, losses))
    if losses.nats:
        return fit_link(())  # in nats as they are, but for what any model is off
    return None
