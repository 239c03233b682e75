"""Experiments: base.py lists every setting, one short file an experiment."""
