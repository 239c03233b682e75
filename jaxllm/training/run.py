"""One run in its work directory: resume, train, and end in good order however it ends."""

import contextlib
import json
import pathlib
import subprocess
import sys
import time

import jax

from jaxllm.config import ConfigError
from jaxllm.scaling import devices, flops
from jaxllm.training import announce, hosts, processes, setup
from jaxllm.training.arrays import MismatchError
from jaxllm.training.checkpoint import Checkpoints
from jaxllm.training.lock import RunLock
from jaxllm.training.loop import Loop, Progress
from jaxllm.training.metrics import RunLog, versions
from jaxllm.training.profile import Profile
from jaxllm.training.reopen import check_tokenizer
from jaxllm.training.sampling import make_sampler
from jaxllm.training.state import place_key
from jaxllm.training.stop import Stop, Watchdog

EXIT = {"done": 0, "early_stop": 0, "stopped": 0, "interrupted": 130, "failed": 1}


def train(config, workdir, notes=(), join=("", 0, -1)):
    """Trains a config in a work directory, from its newest checkpoint if it has one.

    Args:
        config: completed, locked ConfigDict.
        workdir: directory of the run; made if absent. It is the run: config.json, run.json,
            metrics.jsonl, speed.jsonl, TensorBoard events, checkpoints/, tokenizer/, summary.json.
        notes: lines for the start page.
        join: arguments of `processes.join`.

    Returns:
        Exit status: 0 when done, stopped early or by SIGTERM; 130 after Ctrl-C; 1 otherwise.

    Raises:
        ConfigError: before any training, for what cannot work.
    """
    started = time.perf_counter()
    workdir = pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop(grace_s=config.runtime.grace_s))
        processes.join(*join)
        stop.listen()
        setup.check(config, jax.device_count())
        processes.check_same("config", setup.config_json(config))
        lock = stack.enter_context(RunLock(workdir))
        with stop.phase("prepare"):
            run = setup.assemble(config, workdir)
        return _train(run, workdir, lock, stop, stack, list(notes), started)


def _train(run, workdir, lock, stop, stack, notes, started):
    """Restores or starts, compiles, loops, and writes how it ended."""
    config, meta = run.config, {"tokenizer": run.tokenizer.fingerprint}
    checkpoints = stack.enter_context(
        Checkpoints(
            workdir / "checkpoints",
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
            report=notes.append,
        )
    )
    state, progress, resumed = restore_or_create(run, checkpoints)
    first = int(state.step)
    if hosts.share("finished", lambda: is_finished(config, workdir, first)):
        if processes.is_first():
            print(
                f"{workdir} is finished, at step {first:,}: nothing to do. For more give a larger "
                f"--config.steps than {config.steps}, or another --workdir."
            )
        return EXIT["done"]
    # Only now: a run that is refused leaves the records of the one before.
    write_records(config, workdir)
    log = RunLog(
        workdir,
        flat(config.to_dict()),
        total_steps=config.steps,
        first_step=first + 1,
        writer=processes.is_first(),
    )
    status, error, loop = "failed", "", None
    profile = Profile(workdir, config.profile.first, config.profile.steps)
    try:
        if not resumed:
            checkpoints.save(0, state, meta | vars(progress))
        emergency = _emergency(checkpoints, log)
        with stop.phase("compile", on_deadline=emergency):
            batch = setup.abstract_batch(run, config.data.batch)
            compiled = run.step.lower(run.abstract, {}, batch).compile()
        peak, how = devices.peak_flops(jax.devices()[0])
        peak = peak and peak * (1 if how.startswith("measured") else run.mesh.size)
        per_token = flops.train_flops_per_token(run.model.config, config.data.length)
        if processes.is_first():
            print(announce.page(run, compiled, notes, resumed and first, peak, how, started))
        loop = Loop(
            run,
            compiled,
            log,
            checkpoints,
            lock,
            stop,
            progress,
            meta,
            make_sampler(run),
            profile,
            stack.enter_context(Watchdog(config.runtime.watchdog_s, path=workdir / "stacks.txt")),
            per_token,
            peak,
        )
        state, status = loop.fit(state)
        if status == "stopped" and "SIGINT" in stop.reason:
            status = "interrupted"
    except KeyboardInterrupt:
        status, error = "interrupted", "Ctrl-C"
    except BaseException as problem:
        error = f"{type(problem).__name__}: {problem}"
        raise
    finally:
        final = loop.final() if loop else {}
        try:
            profile.close()
            checkpoints.close()
        except BaseException as problem:
            status, error = "failed", error or f"{type(problem).__name__}: {problem}"
            raise
        finally:
            log.finish(status, final, error)
    return EXIT[status]


def restore_or_create(run, checkpoints):
    """Returns (state, Progress, whether a checkpoint was restored).

    Raises:
        ConfigError: the checkpoint was made with another tokenizer, model or optimizer.
    """
    step = checkpoints.latest()
    if step is None:
        return run.create(place_key(run.mesh, run.config.seed)), Progress(), False
    try:
        state, meta = checkpoints.restore(step, run.abstract)
    except MismatchError as error:
        raise ConfigError(str(error)) from None
    check_tokenizer(run.tokenizer, meta, step)
    known = {field: meta[field] for field in vars(Progress()) if field in meta}
    return state, Progress(**known), True


def is_finished(config, workdir, step):
    """Whether a run has done all its steps, or stopped early by this very config, and said so."""
    try:
        summary = json.loads((workdir / "summary.json").read_text())
        same = (workdir / "config.json").read_text() == setup.config_json(config)
    except (OSError, ValueError):
        return False
    if summary["step"] != step:
        return False
    done = summary["status"] == "done" and step >= config.steps
    return done or (summary["status"] == "early_stop" and same)


def _emergency(checkpoints, log):
    """What is done when the main thread sits in the compiler past the grace time.

    The state has not moved since the checkpoint that was restored or is being written.
    """

    def leave():
        checkpoints.wait()
        log.finish("stopped", {}, "stopped while compiling")

    return leave


def write_records(config, workdir):
    """Writes config.json and run.json (command, commit, versions, devices); process 0 does."""
    if not processes.is_first():
        return
    record = {
        "command": sys.argv,
        "commit": git_commit(),
        "versions": versions(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "processes": jax.process_count(),
    }
    (workdir / "config.json").write_text(setup.config_json(config))
    (workdir / "run.json").write_text(json.dumps(record, indent=1))


def git_commit():
    """The commit of the code, with "+" where files differ from it; "" outside a checkout."""
    here = pathlib.Path(__file__).parent
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        out = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return out.stdout.strip()


def flat(tree, prefix=""):
    """Flattens nested dicts to {"a.b.c": value}, leaving out what is unset."""
    items = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            items |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            items[prefix + name] = value
    return items
