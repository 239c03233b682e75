"""The train loop, for every objective and every source."""

import contextlib
import dataclasses
import math
import time

import jax

from jaxllm import data, sharding
from jaxllm.data.prefetch import Prefetch
from jaxllm.scaling import flops
from jaxllm.training import drift, fits
from jaxllm.training.validate import validate

AHEAD_S = 1.0  # of steps that wait for the device behind the one it is at, about


class NonFiniteError(RuntimeError):
    """Updates in a row were not finite; the last finite checkpoint is kept."""


@dataclasses.dataclass
class Progress:
    """What the loop remembers between steps and stores with every checkpoint.

    Attributes:
        best: lowest validation loss so far.
        without_gain: validations since then.
        skipped: non-finite updates seen so far.
    """

    best: float = float("inf")
    without_gain: int = 0
    skipped: int = 0


def due(step, every, last):
    """Whether something that happens every `every` steps, and at the last, happens at `step`."""
    return step == last or (every > 0 and step % every == 0)


class Loop:
    """One run from its first step to its end.

    Args:
        run: `setup.Run`.
        base: `base.Base`, what stays frozen.
        log: `metrics.RunLog`.
        checkpoints: `checkpoint.Checkpoints`.
        lock: `lock.RunLock` of the work directory.
        stop: `stop.Stop`.
        progress: Progress of the checkpoint that the run starts from.
        profile: `profile.Profile`.
        watchdog: `stop.Watchdog`.
    """

    def __init__(self, run, base, log, checkpoints, lock, stop, progress, profile, watchdog):
        self.run, self.log, self.checkpoints, self.lock = run, log, checkpoints, lock
        self.refs, self.digest = base
        self.stop, self.progress = stop, progress
        self.profile, self.watchdog = profile, watchdog
        self.config = run.config
        self.flops = flops.of_run(run.config, run.model.config)
        self.pending = []  # (step, skipped) of steps not yet looked at
        self.clock, self.clock_step = time.perf_counter(), 0
        self.train_metrics, self.validation, self.speed = {}, {}, {}
        self.slow = False  # whether it was told that a stop cannot wait for a step
        self.planned = None  # of a step, once it is compiled; see `drift`

    def fit(self, state, step_fn, peak=None, sample=None):
        """Trains from `state` to the last step, or until asked to stop.

        Args:
            state: TrainState; it is donated.
            step_fn: compiled step, (state, refs, batch) -> (state, metrics).
            peak: FLOP/s of all devices together, for MFU; None where it is unknown.
            sample: (params, step) -> text, for the log; None for none.

        Returns:
            (state, "done" | "early_stop" | "stopped").

        Raises:
            NonFiniteError: config.step.skip_limit non-finite updates in a row.
        """
        self.peak, self.sample = peak, sample
        first, last = int(state.step), self.config.steps
        outcome = self._after_save(first, state, last)  # what the last process did not come to
        if outcome or first >= last:
            return state, outcome or "done"
        batch = self.config.data.batch
        rows = sharding.local_rows(self.run.mesh, batch)

        def fetch(step):
            local = self.run.train(step, rows)
            return sharding.global_batch(self.run.mesh, rows, local, batch)

        self._restart_clock(first)
        depth = self.config.data.prefetch
        with contextlib.closing(Prefetch(fetch, first, last, depth)) as batches:
            for index, rows_of_step in batches:
                step = index + 1  # updates done, once this one is
                self.profile.before(step)
                state, metrics = step_fn(state, self.refs, rows_of_step)
                self.pending.append((step, metrics["skipped"]))
                self.profile.after(step, metrics)
                self._keep_up()
                self.watchdog.beat()
                self.checkpoints.check()
                self.lock.check()
                outcome = self._after_step(step, state, metrics, last)
                if outcome:
                    return state, outcome
        return state, "done"

    def _keep_up(self):
        """Waits for the device if more lies before it than a signal should have to wait for."""
        ahead = int(AHEAD_S / self.speed["step_s"]) if self.speed else 0
        if len(self.pending) > ahead:
            jax.block_until_ready(self.pending[-1 - ahead][1])

    def _after_step(self, step, state, metrics, last):
        """Logs, saves, validates; returns how the run ends, or None."""
        self.log.step = step  # the summary tells where the run ended, logged or not
        stopping = self.stop.agreed(step)
        saves = due(step, self.config.checkpoint.every, last) or stopping
        saves = saves or due(step, self.config.validate.every, last)
        if step == 1 or due(step, self.config.log.every, last):
            self._log(step, metrics)
        elif saves:
            self._check_finite(step, metrics)
        if saves:
            with self.stop.phase("save"):
                self.checkpoints.save(step, state, self.meta())
        if stopping:
            return "stopped"
        if saves:
            outcome = self._after_save(step, state, last)
            self._restart_clock(step)
            return outcome
        return None

    def _after_save(self, step, state, last):
        """What follows a checkpoint: validation, the sample, the decision to stop early."""
        if step == 0 or not due(step, self.config.validate.every, last):
            return None
        params = state.ema or state.params
        with self.stop.phase("validate"):
            metrics = self.log.recorded_validation(step)
            if metrics is None:
                metrics = validate(
                    self.run.evaluate,
                    self.run.validation,
                    self.run.mesh,
                    params,
                    self.refs,
                    batch=self.config.validate.batch,
                    batches=self.config.validate.batches,
                    interrupted=self.stop.interrupts,
                    **fits.told(self.config),
                )
                if metrics is None:
                    return "stopped"
                self.log.validation(step, metrics)
            self.validation = metrics
            self.checkpoints.score(step, metrics["loss"])
        if self.sample and due(step, self.config.sample.every, last):
            with self.stop.phase("sample"):
                self.log.text(step, "sample", self.sample(params, step))
        return self._early_stop(step, metrics["loss"])

    def _early_stop(self, step, loss):
        progress, rule = self.progress, self.config.validate
        if loss < progress.best - rule.min_gain:
            progress.best, progress.without_gain = loss, 0
            return None
        progress.without_gain += 1
        if rule.patience and progress.without_gain >= rule.patience:
            self.log.event(
                step, f"no gain in {rule.patience} validations (best {progress.best:.4f})"
            )
            return "early_stop"
        return None

    def _log(self, step, metrics):
        """Waits for the device, then writes one line."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.perf_counter()
        steps, seconds = step - self.clock_step, now - self.clock
        tokens = self.config.data.batch * self.config.data.length
        speed = {"step_s": seconds / max(steps, 1), "tokens_per_s": tokens * steps / seconds}
        if self.peak:
            speed["mfu"] = speed["tokens_per_s"] * self.flops / self.peak
        self.log.train(step, values, speed)
        self.train_metrics, self.speed = {"step": step, **values}, speed
        self._restart_clock(step)
        self._check_grace(step)
        self._check_finite(step, metrics)

    def _check_grace(self, step):
        """Tells once, and not by the first step, if no signal can wait for a step to be saved."""
        seconds, patience_s = self.speed["step_s"], self.stop.grace_s - self.stop.reserve_s
        if self.slow or step == 1 or seconds < patience_s:
            return
        self.slow = True
        enough = math.ceil(2 * seconds + self.stop.reserve_s)
        self.log.event(
            step,
            f"a step takes {seconds:.1f} s, and a stop is waited for {patience_s:g} s: it would "
            "lose what was done since the last checkpoint. If whoever stops the run gives it the "
            f"time, try --config.runtime.grace_s={enough}.",
        )

    def _check_finite(self, step, metrics):
        """Tells of dropped updates; stops the run at the limit."""
        skips = jax.device_get([skipped for _, skipped in self.pending])
        for (at, _), skipped in zip(self.pending, skips, strict=True):
            if skipped > self.progress.skipped:
                listed = at in data.get(self.config.data, "skip")["steps"]
                why = "is on the skip list" if listed else "was not finite and was dropped"
                self.log.event(at, f"update {at} {why} ({skipped} so far)")
            self.progress.skipped = int(skipped)
        self.pending = []
        limit = self.config.step.skip_limit
        if int(metrics["bad_run"]) >= limit:
            raise NonFiniteError(
                f"{limit} updates in a row were not finite (looked at step {step}); none was "
                f"applied. Checkpoints: {self.checkpoints.steps() or 'none'}. Try a lower "
                f"--config.schedule.lr, a smaller --config.step.clip, or look at the data of "
                f"the steps named above."
            )

    def final(self):
        """The last metrics of training and validation, for the summary: {"name/metric": value}."""
        groups = {"train": self.train_metrics, "validation": self.validation, "speed": self.speed}
        best = self.progress.best
        named = {} if best == float("inf") else {"best_validation_loss": best}
        return {
            f"{group}/{name}": value
            for group, metrics in groups.items()
            for name, value in metrics.items()
        } | named

    def beside_plan(self):
        """What was planned and what was measured, for the summary; None before compiling."""
        if self.planned is None:
            return None
        return {"planned": self.planned, "measured": drift.measured(self.run, self.speed)}

    def meta(self):
        """What a checkpoint says of itself besides its arrays."""
        own = {"tokenizer": self.run.tokenizer.fingerprint, "data": self.run.record}
        own |= {"base": self.digest} if self.digest else {}
        return own | dataclasses.asdict(self.progress)

    def _restart_clock(self, step):
        self.clock, self.clock_step = time.perf_counter(), step
