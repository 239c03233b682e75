"""Checkpoints: written in the background, hashed, committed by a marker, verified when read.

    directory/step_00000100/begun.json      whose directory this is, written first
    directory/step_00000100/arrays/...      Orbax: OCDBT, readable on any mesh and process count
    directory/step_00000100/manifest.json   size and SHA-256 of every file, shapes, meta
    directory/step_00000100/COMMITTED       SHA-256 of the manifest, written last
    directory/scores.json                   validation loss of steps
    directory/bad/                          damaged checkpoints, moved here and never deleted

Process 0 decides (what is there, what is good, what to delete) and tells the others.
"""

import contextlib
import functools
import json
import os
import re
import threading

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from jaxllm.training import arrays, hosts, manifest
from jaxllm.training.arrays import CheckpointError
from jaxllm.training.ranking import Ranking

BEGUN = "begun.json"
STEP_NAME = re.compile(r"step_(\d{8,})$")


class Checkpoints:
    """The checkpoints of one run.

    Every process of the run makes the same calls in the same order; `check`, `wait` and `close`
    may also be called from another thread.
    """

    def __init__(
        self,
        directory,
        *,
        keep_last=2,
        keep_best=1,
        read_only=False,
        timeout_s=1200,
        report=logging.warning,
    ):
        """Opens a directory of checkpoints, and clears what a killed run left half-written.

        Args:
            directory: local path, or one that etils.epath knows such as gs://bucket/run.
            keep_last: how many of the newest to keep; at least 1.
            keep_best: how many of those with the lowest validation loss to keep besides.
            read_only: for readers beside a running writer: nothing is moved, deleted or saved.
                A writer must hold the lock of the work directory.
            timeout_s: how long a process waits for the others before a save fails, in seconds.
            report: called with one line of text about everything unexpected.

        Raises:
            ValueError: keep_last below 1 or keep_best below 0.
        """
        if keep_last < 1 or keep_best < 0:
            raise ValueError(
                f"keep_last={keep_last} and keep_best={keep_best}: keep_last must be at least 1 "
                "and keep_best at least 0. Try keep_last=2, keep_best=1."
            )
        self.directory = epath.Path(directory)
        if manifest.is_local(self.directory):
            self.directory = epath.Path(os.path.abspath(self.directory))
        self.keep_last, self.keep_best = keep_last, keep_best
        self.read_only, self.timeout_s, self.report = read_only, timeout_s, report
        self._known = set()  # steps that this object saved or restored
        self._verified = None  # step that latest() has just read whole
        self._thread, self._error = None, None
        self._ranking = Ranking(self.directory, report)
        if not read_only:
            self._share("open checkpoints", self._clean)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def save(self, step, tree, meta):
        """Starts to write a checkpoint; returns when the arrays may be donated or overwritten.

        Waits first for a save still in flight. Saving a step that this object has saved or
        restored already does nothing.

        Args:
            step: number of the step; what `restore` takes.
            tree: tree of jax or numpy arrays, whole or sharded over the processes.
            meta: dict that JSON can hold.

        Raises:
            CheckpointError: an earlier save failed, or this one cannot start.
            TypeError: a leaf is no array, or meta is not JSON.
        """
        self.wait()
        step = int(step)
        if self.read_only:
            raise CheckpointError(f"{self.directory} was opened read-only; step {step} not saved.")
        if step in self._known:
            return
        leaves = arrays.flatten(tree)
        body = {
            "step": step,
            "meta": json.loads(json.dumps(meta)),
            "arrays": arrays.signature(leaves),
        }
        self._share("begin checkpoint", lambda: self._begin(step))
        leaves = {path: arrays.snapshot(leaf) for path, leaf in leaves.items() if leaf.size}
        try:
            self._orbax.save(self._path(step) / "arrays", args=ocp.args.PyTreeSave(leaves))
        except Exception as error:
            raise self._failed(step, error) from error
        self._known.add(step)
        self._thread = threading.Thread(
            target=self._finish, args=(step, body), name=f"checkpoint {step}"
        )
        self._thread.start()

    def check(self):
        """Raises the error of a background write, once; cheap enough for every step."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self):
        """Waits until the save in flight is committed everywhere, and raises its error."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def close(self):
        """Waits for the save in flight. Every way out of a run must come here."""
        self.wait()

    @functools.cached_property
    def _orbax(self):
        # Naming the processes makes Orbax meet at barriers of the coordination service, which
        # have a deadline, instead of a collective on the devices, which has none.
        together = ocp.options.MultiprocessingOptions(
            active_processes=set(range(jax.process_count())) if jax.process_count() > 1 else None
        )
        return ocp.AsyncCheckpointer(
            ocp.PyTreeCheckpointHandler(
                use_ocdbt=True, use_compression=False, multiprocessing_options=together
            ),
            async_options=ocp.options.AsyncOptions(
                timeout_secs=self.timeout_s, create_directories_asynchronously=False
            ),
            atomicity_options=ocp.options.AtomicityOptions(
                mode=ocp.options.AtomicityMode.COMMIT_FILE
            ),
            multiprocessing_options=together,
        )

    def _finish(self, step, body):
        """Runs in the background: waits for the arrays, then hashes and commits them."""
        try:
            self._orbax.wait_until_finished()  # on every process, through barriers of its own
            self._share("commit checkpoint", lambda: self._commit(step, body))
        except BaseException as error:
            self._known.discard(step)
            failure = self._failed(step, error)
            failure.__cause__ = error
            self._error = failure

    def _begin(self, step):
        path = self._path(step)
        if path.exists():
            if manifest.is_committed(path):
                raise CheckpointError(
                    f"{path} holds a checkpoint of another attempt at step {step}. Move it away, "
                    "or continue from it, or use another work directory."
                )
            self._discard(path)
        path.mkdir(parents=True, exist_ok=True)
        owner = {"directory": os.fspath(self.directory), "step": step}
        manifest.write_atomic(path / BEGUN, json.dumps(owner).encode())
        self._ranking.forget(step)

    def _commit(self, step, body):
        manifest.commit(self._path(step), body)
        self._prune()

    def _failed(self, step, error):
        left = "unknown"
        with contextlib.suppress(OSError):
            left = self.steps()
        return CheckpointError(
            f"The checkpoint of step {step} could not be written to {self._path(step)}: "
            f"{type(error).__name__}: {error}. Earlier checkpoints are untouched: {left}."
        )

    def latest(self):
        """Returns the newest step that is whole to the last bit, or None.

        Damaged ones are reported and moved to `bad/` (only reported when read-only).
        """
        return self._share("find the latest checkpoint", self._find_latest)

    def restore(self, step, abstract_tree, *, partial=False):
        """Reads a checkpoint onto the devices, after checking every byte of it.

        Args:
            step: what was saved.
            abstract_tree: the tree wanted, with jax.ShapeDtypeStruct leaves that have a sharding;
                any mesh and any number of processes will do.
            partial: the checkpoint may hold more leaves, which are not read onto devices.

        Returns:
            (tree of jax.Array, meta).

        Raises:
            CheckpointError: no such step, damaged files, or other leaves than wanted.
        """
        self.wait()
        step = int(step)
        wanted = arrays.flatten(abstract_tree)
        body = self._share("read the checkpoint", lambda: self._read(step))
        saved = {p: s for p, s in body["arrays"].items() if p in wanted or not partial}
        arrays.compare(self._path(step), saved, arrays.signature(wanted))
        targets = {path: arrays.target(path, leaf) for path, leaf in wanted.items()}
        empty = {path: targets.pop(path) for path, leaf in wanted.items() if 0 in leaf.shape}
        leaves = self._orbax.restore(
            self._path(step) / "arrays",
            args=ocp.args.PyTreeRestore(
                item=targets,
                restore_args=ocp.checkpoint_utils.construct_restore_args(targets),
                partial_restore=partial,
            ),
        )
        # Orbax refuses arrays without elements; there is nothing of them to save.
        leaves |= {
            path: jnp.zeros(t.shape, t.dtype, device=t.sharding) for path, t in empty.items()
        }
        if not partial:
            self._known.add(step)
        tree = jax.tree.unflatten(jax.tree.structure(abstract_tree), [leaves[p] for p in wanted])
        return tree, body["meta"]

    def _find_latest(self):
        for step in reversed(self.steps()):
            try:
                self._verify(step)
            except manifest.DamagedError as error:
                self._put_aside(self._path(step), f"damaged: {error}")
                continue
            self._verified = step
            return step
        return None

    def _read(self, step):
        path = self._path(step)
        if not manifest.is_committed(path):
            raise CheckpointError(
                f"{path} is no finished checkpoint. Steps in {self.directory}: {self.steps()}."
            )
        if self._verified == step:  # read whole a moment ago
            self._verified = None
            return json.loads((path / manifest.NAME).read_text())
        try:
            return self._verify(step)
        except manifest.DamagedError as error:
            raise CheckpointError(f"Step {step} is not restored: {error}.") from error

    def _verify(self, step):
        body = manifest.verify(self._path(step))
        if body["step"] != step:
            raise manifest.DamagedError(f"{self._path(step)} holds step {body['step']}")
        return body

    def steps(self):
        """Returns the committed steps on the disk, oldest first; does not read what they hold."""
        return [step for step, path in self._directories() if manifest.is_committed(path)]

    def identity(self, step):
        """Returns what no other checkpoint has: SHA-256 over all that a committed step holds."""
        return (self._path(step) / manifest.MARKER).read_text().strip()

    def score(self, step, loss):
        """Records the validation loss of a step, for keep_best.

        Args:
            step: a step that was saved, or is being saved.
            loss: lower is better; nan never is the best.
        """
        if not self.read_only and hosts.index() == 0:
            self._ranking.add(step, loss, lambda other: self._path(other).exists())

    def best(self):
        """Returns the committed step with the lowest validation loss, or None without any."""

        def first():
            return next(iter(self._ranking.best(self.steps())), None)

        return self._share("find the best checkpoint", first)

    def _prune(self):
        """Deletes what neither keep_last nor keep_best holds; the newest has just been read."""
        steps = self.steps()
        keep = {*steps[-self.keep_last :], *self._ranking.best(steps)[: self.keep_best]}
        for step in steps:
            if step not in keep:
                _remove(self._path(step))

    def _share(self, name, function):
        return hosts.share(f"{self.directory}: {name}", function, self.timeout_s)

    def _path(self, step):
        return self.directory / f"step_{step:08d}"

    def _directories(self):
        """Returns [(step, path)] of what is named like a checkpoint, oldest first."""
        if not self.directory.exists():
            return []
        matches = [(STEP_NAME.match(path.name), path) for path in self.directory.iterdir()]
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _clean(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        for _, path in self._directories():
            if manifest.is_committed(path):
                continue
            if self._is_ours(path):
                self.report(f"{path} was never finished; removed.")
                _remove(path)
            else:
                self.report(f"{path} is no finished checkpoint and not of this run; left alone.")

    def _is_ours(self, path):
        """Whether an unfinished directory was begun here: a copy from elsewhere is not touched."""
        if not path.is_dir():
            return False
        names = {child.name for child in path.iterdir()}
        if names <= {f"{BEGUN}.tmp"}:
            return True  # killed before it could say whose it is, and nothing in it
        try:
            return json.loads((path / BEGUN).read_text())["directory"] == os.fspath(self.directory)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _discard(self, path):
        if self._is_ours(path):
            _remove(path)
        else:
            self._put_aside(path, "in the way, unfinished and not of this run")

    def _put_aside(self, path, why):
        """Moves a directory to bad/ and reports it."""
        if self.read_only:
            self.report(f"{path} is skipped: {why}.")
            return
        bad = self.directory / "bad"
        bad.mkdir(parents=True, exist_ok=True)
        numbers = (bad / f"{path.name}_{n}" for n in range(1, 1_000_000))
        target = next(t for t in numbers if not t.exists())
        path.rename(target)
        self.report(f"{path} is moved to {target}: {why}.")


def _remove(path):
    """Deletes a checkpoint so that at no moment half of one counts as whole, or as a stranger's."""
    (path / manifest.MARKER).unlink(missing_ok=True)
    for child in list(path.iterdir()):
        if child.is_dir():
            child.rmtree()
        elif child.name != BEGUN:
            child.unlink()
    path.rmtree()
