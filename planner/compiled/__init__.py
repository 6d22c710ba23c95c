"""Loops compiled for the processor that they run on: how, with vectors as values, and once that pays."""
