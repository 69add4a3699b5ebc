"""Errors of a model on labelled frames: numbers, tables, plots, predictions."""
