"""The run log: what a run writes about itself while it goes on, and when it ends.

| File           | What is in it                                                                |
|----------------|------------------------------------------------------------------------------|
| metrics.jsonl  | what a rerun gives again bit for bit: losses, norms, learning rates          |
| speed.jsonl    | what it does not: seconds, tokens/s, MFU                                     |
| events.jsonl   | what happened: skipped updates, fallbacks, how each session began and ended  |
| samples/       | sampled text, a file a step                                                  |
| summary.json   | status, final metrics, steps, seconds, versions, error; "running" until then |
| events.out.*   | all of it for TensorBoard                                                    |

A step's number is the number of updates done when the line was written. Only process 0 writes.
See `jsonl` for how NaN is written.
"""

import importlib.metadata
import pathlib
import sys
import threading
import time

from jaxllm.training import hosts, jsonl
from jaxllm.training.tensorboard import TensorBoard

STATUSES = ("done", "early_stop", "stopped", "failed", "interrupted")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "ml-collections")


class RunLog:
    """The log of one session of a run, from its first step to its end."""

    def __init__(self, workdir, hparams, *, total_steps, first_step, writer=True):
        """Opens the log; what an earlier session wrote from `first_step` on is dropped.

        Args:
            workdir: directory of the run; made if absent.
            hparams: {flat name: value}, for TensorBoard's HPARAMS tab.
            total_steps: steps of the whole run.
            first_step: number of the first step that this session will log.
            writer: False where another process writes: then the methods do nothing.
        """
        self.workdir, self.writer = pathlib.Path(workdir), writer
        self.total_steps, self.first_step, self.step = total_steps, first_step, first_step - 1
        self.started, self.clock = time.perf_counter(), None
        self.last, self.recorded, self.finished = {}, {}, False
        self._lock = threading.Lock()
        if not writer:
            return
        self.workdir.mkdir(parents=True, exist_ok=True)
        kept, bad = jsonl.truncate(self.workdir / "metrics.jsonl", first_step)
        _, bad_speed = jsonl.truncate(self.workdir / "speed.jsonl", first_step)
        self._files = {
            name: jsonl.Appender(self.workdir / f"{name}.jsonl")
            for name in ("metrics", "speed", "events")
        }
        self.tensorboard = TensorBoard(self.workdir, hparams, first_step)
        for line in kept:
            self._remember(line)
        self._write_summary("running", {}, "")
        self.event(self.step, f"session started at step {first_step} of {total_steps}", quiet=True)
        for name, numbers in (("metrics", bad), ("speed", bad_speed)):
            if numbers:
                self.event(self.step, f"{name}.jsonl: lines {numbers} were damaged and are dropped")

    def train(self, step, metrics, speed):
        """Logs a train step and prints a line of progress.

        Args:
            step: updates done.
            metrics: {name: number}, deterministic; "loss" and "lr" are in the progress line.
            speed: {name: number}; "tokens_per_s" and "mfu" (0 to 1) are in the progress line,
                "step_s" serves the first estimate of the time left.
        """
        self.step = max(self.step, step)
        if not self.writer:
            return
        self._write("metrics", step, "train", metrics)
        self._write("speed", step, "speed", speed)
        print(self._progress(step, metrics, speed), flush=True)

    def validation(self, step, metrics):
        """Logs a validation: {"loss": nats a token, "perplexity", "bits_per_byte", ...}."""
        self.step = max(self.step, step)
        if not self.writer:
            return
        self._write("metrics", step, "validation", metrics)
        names = {"loss": "loss", "perplexity": "perplexity", "bits_per_byte": "bits/byte"}
        shown = [
            f"{text} {_short(metrics[name])}" for name, text in names.items() if name in metrics
        ]
        print(f"step {self._count(step)}  validation  " + "  ".join(shown), flush=True)

    def recorded_validation(self, step):
        """Returns the metrics that an earlier session validated `step` with, or None.

        All processes get the same answer; all must ask for the same steps in the same order.
        """
        if step >= self.first_step:
            return None
        return hosts.share("recorded validation", lambda: self.recorded.get(step))

    def text(self, step, tag, text):
        """Logs text to TensorBoard and to samples/, and prints it."""
        if not self.writer:
            return
        folder = self.workdir / "samples"
        folder.mkdir(exist_ok=True)
        jsonl.write_atomic(folder / f"{step:08d}_{tag.replace('/', '_')}.txt", text)
        self.tensorboard.text(tag, step, text)
        # An untrained model writes control characters, which a terminal would obey.
        shown = "".join(
            c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
        )
        print(f"step {self._count(step)}  {tag}:\n{shown}", flush=True)

    def event(self, step, message, *, deterministic=False, quiet=False):
        """Logs something that happened and prints it.

        Args:
            step: updates done.
            message: one line.
            deterministic: whether a rerun brings the same event at the same step: then it goes
                to metrics.jsonl, else to events.jsonl with the time.
            quiet: not printed.
        """
        if not self.writer:
            return
        line = {"step": step, "kind": "event", "message": message}
        if deterministic:
            self._files["metrics"].write(line)
        else:
            self._files["events"].write({"time": time.time(), **line})
        if not quiet:
            print(f"step {self._count(step)}  {message}", flush=True)

    def finish(self, status, final, error="", plan=None):
        """Writes summary.json and the end of the run for TensorBoard; a second call does nothing.

        Args:
            status: one of STATUSES.
            final: {"validation/loss": value, ...}; they win over the last ones that were logged.
            error: message of the exception, if there was one.
            plan: {"planned", "measured"}, see `drift`; None where the step was never compiled.

        Raises:
            ValueError: unknown status.
        """
        if status not in STATUSES:
            raise ValueError(f"status={status!r} is unknown. Known: {', '.join(STATUSES)}.")
        with self._lock:
            if self.finished or not self.writer:
                return
            self.finished = True
            final = self.last | final
            self._write_summary(status, final, error, plan)
            self.tensorboard.finish(status, self.step, final)
            words = f"session ended: {status}" + (f", {error}" if error else "")
            self.event(self.step, words, quiet=True)
            for file in self._files.values():
                file.close()

    def _write(self, name, step, kind, metrics):
        """One line and its scalars."""
        line = {"step": step, "kind": kind, **metrics}
        self._files[name].write(line)
        plain = jsonl.decode(jsonl.encode(metrics))
        self.tensorboard.scalars(kind, step, plain)
        self._remember({**plain, "step": step, "kind": kind})

    def _remember(self, line):
        """Keeps the newest value of each metric, and every validation, of a written line."""
        line = dict(line)
        step, kind = line.pop("step"), line.pop("kind")
        if kind == "event":
            return
        self.last |= {f"{kind}/{metric}": value for metric, value in line.items()}
        if kind == "validation":
            self.recorded[step] = line

    def _write_summary(self, status, final, error, plan=None):
        summary = {
            "status": status,
            "final": final,
            "step": self.step,
            "total_steps": self.total_steps,
            "first_step": self.first_step,
            "wall_s": time.perf_counter() - self.started,
            "versions": versions(),
            "error": error,
        } | ({"plan": plan} if plan else {})
        jsonl.write_atomic(self.workdir / "summary.json", jsonl.encode(summary, indent=1) + "\n")

    def _count(self, step):
        """Step of steps, as wide as the last one will be."""
        return f"{step:>{len(str(self.total_steps))}}/{self.total_steps}"

    def _progress(self, step, metrics, speed):
        """One line for a person; a figure that is not known is left out."""
        now = time.perf_counter()
        if self.clock is None:
            self.clock, step_s = (now, step), speed.get("step_s")
        else:  # validation and saves included, which one step's time leaves out
            step_s = (now - self.clock[0]) / max(step - self.clock[1], 1)
        parts = [f"step {self._count(step)}"]
        if "loss" in metrics:
            parts.append(f"loss {_short(metrics['loss'])}")
        if "tokens_per_s" in speed:
            parts.append(f"{speed['tokens_per_s']:,.0f} tokens/s")
        if speed.get("mfu") is not None:
            parts.append(f"MFU {100 * speed['mfu']:.1f}%")
        if "lr" in metrics:
            parts.append(f"lr {float(metrics['lr']):.2e}")
        if step_s is not None:
            parts.append(f"{duration(step_s * (self.total_steps - step))} left")
        return "  ".join(parts)


def duration(seconds):
    """Writes seconds as people do: 42s, 3m05s, 2h10m, 4d03h."""
    s = max(0, round(seconds))
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"


def versions():
    """Versions of Python and of the libraries that training stands on, "" for one not installed."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _short(value):
    return "none" if value is None else f"{float(value):.4f}"
