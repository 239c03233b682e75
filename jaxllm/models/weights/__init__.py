"""Weights in and out: files of other people's models as views that are read piece by piece."""
