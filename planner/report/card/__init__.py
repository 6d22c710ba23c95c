"""The card of a repository of quantized files: what the Hugging Face hub shows, and names that tools find files by."""

from __future__ import annotations

from planner.report.card.front import Facts, facts_of
from planner.report.card.labels import TOLERANCE, Labels, labels_for
from planner.report.card.readme import Card, Entry, Room, readme

__all__ = ["TOLERANCE", "Card", "Entry", "Facts", "Labels", "Room", "facts_of", "labels_for", "readme"]
