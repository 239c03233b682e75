"""Traces of chosen steps, for TensorBoard's profile tab or ui.perfetto.dev. No server is opened."""

import pathlib

import jax


class Profile:
    """Traces `steps` steps from step `first` into WORKDIR/profile; process 0 does.

    The loop calls `before` and `after` around every step, and `close` when it leaves.
    """

    def __init__(self, workdir, first, steps, *, writer=None):
        """Chooses the steps.

        Args:
            workdir: directory of the run.
            first: number of the first traced step, counted from 1; 0 means 1.
            steps: how many; 0 for none.
            writer: whether this process traces; None for process 0 only.
        """
        self.directory = pathlib.Path(workdir) / "profile"
        self.first, self.last = max(first, 1), max(first, 1) + steps - 1
        writer = jax.process_index() == 0 if writer is None else writer
        self.waiting, self.tracing = bool(steps) and writer, False

    def before(self, step):
        """Starts the trace if `step` is the first to be traced.

        A run that resumes among the chosen steps traces what is left of them; one that resumes
        after them says so.
        """
        if not self.waiting or step < self.first:
            return
        self.waiting = False
        if step > self.last:
            print(f"profile: steps {self.first} to {self.last} are past, nothing is traced")
            return
        print(f"profile: tracing steps {step} to {self.last} into {self.directory}", flush=True)
        jax.profiler.start_trace(self.directory)
        self.tracing = True

    def after(self, step, outputs):
        """Ends the trace if `step` is the last to be traced, once `outputs` are computed."""
        if self.tracing and step >= self.last:
            jax.block_until_ready(outputs)
            self.close()

    def close(self):
        """Ends a trace that is still going on; may be called at any time and twice."""
        if self.tracing:
            self.tracing = False
            jax.profiler.stop_trace()
            print(
                f"profile: written. See it with tensorboard --logdir {self.directory} "
                "(needs pip install xprof), or open a trace.json.gz below it in ui.perfetto.dev",
                flush=True,
            )
