"""Evaluation beyond the loss: metrics of tasks."""
