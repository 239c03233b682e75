"""Training: state, step, loop, checkpoints, metrics, and running safely."""
