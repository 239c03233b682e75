"""One run in its work directory: resume, train, and end in good order however it ends."""

import concurrent.futures
import contextlib
import json
import pathlib
import subprocess
import sys
import time

import jax

from jaxllm.config import ConfigError
from jaxllm.scaling import devices
from jaxllm.training import (
    announce,
    base,
    drift,
    hosts,
    initial,
    look,
    processes,
    records,
    setup,
)
from jaxllm.training.arrays import MismatchError
from jaxllm.training.checkpoint import Checkpoints
from jaxllm.training.lock import RunLock
from jaxllm.training.loop import Loop, Progress
from jaxllm.training.metrics import RunLog, versions
from jaxllm.training.profile import Profile
from jaxllm.training.records import check_data, check_tokenizer
from jaxllm.training.sampling import make_sampler
from jaxllm.training.state import place_key
from jaxllm.training.stop import INTERRUPTED_STATUS, Stop, Watchdog

EXIT = {"done": 0, "early_stop": 0, "stopped": 0, "interrupted": INTERRUPTED_STATUS, "failed": 1}


def train(config, workdir, notes=(), join=("", 0, -1)):
    """Trains a config in a work directory, from its newest checkpoint if it has one.

    Args:
        config: completed, locked ConfigDict.
        workdir: directory of the run; made if absent. It is the run: config.json, run.json,
            metrics.jsonl, speed.jsonl, TensorBoard events, checkpoints/, tokenizer/, summary.json.
        notes: lines for the start page.
        join: arguments of `processes.join`; None where they have been joined.

    Returns:
        Exit status: 0 when done, stopped early or by SIGTERM; 130 after Ctrl-C; 1 otherwise.

    Raises:
        ConfigError: before any training, for what cannot work.
    """
    started = time.perf_counter()
    workdir = local(workdir)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(Stop(grace_s=config.runtime.grace_s))
        if join is not None:
            processes.join(*join)
        stop.listen()
        setup.check(config, jax.device_count())
        processes.check_same("config", records.config_json(config))
        lock = stack.enter_context(RunLock(workdir))
        with stop.phase("prepare"):
            run = setup.assemble(config, workdir)
        return _train(run, workdir, lock, stop, stack, list(notes), started)


def local(workdir):
    """Returns the work directory as a path.

    Raises:
        ConfigError: it names an object store, whose files cannot be appended to or memory-mapped.
    """
    scheme, found, rest = str(workdir).partition("://")
    if found:
        raise ConfigError(
            f"--workdir={workdir} must be on a file system that every host sees, not in an object "
            f"store ({scheme}).\n  Mount the bucket on every host, for example with gcsfuse on "
            f"/mnt/runs, and try --workdir=/mnt/runs/{rest.partition('/')[2] or 'NAME'}."
        )
    return pathlib.Path(workdir)


def _train(run, workdir, lock, stop, stack, notes, started):
    """Restores or starts, compiles, loops, and writes how it ended."""
    config = run.config
    checkpoints = stack.enter_context(
        Checkpoints(
            workdir / "checkpoints",
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
            report=notes.append,
        )
    )
    newest = checkpoints.latest()
    if hosts.share("finished", lambda: is_finished(config, workdir, newest)):
        if processes.is_first():
            print(
                f"{workdir} is finished, at step {newest:,}: nothing to do. For more give a larger "
                f"--config.steps than {config.steps}, or another --workdir."
            )
        return EXIT["done"]
    if newest is None and config.init_from:
        notes += initial.check(run)
    # Two compilations at once: XLA compiles one program on one core.
    pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
    compiling = pool.submit(compile_step, run)
    state, under, progress = restore_or_create(run, checkpoints, newest, workdir)
    notes += changes(config, workdir)
    # Only now: a run that is refused leaves the records of the one before.
    write_records(config, workdir)
    log = RunLog(
        workdir,
        flat(config.to_dict()),
        total_steps=config.steps,
        first_step=(newest or 0) + 1,
        writer=processes.is_first(),
    )
    profile = stack.enter_context(
        contextlib.closing(Profile(workdir, config.profile.first, config.profile.steps))
    )
    watchdog = Watchdog(config.runtime.watchdog_s, path=workdir / "stacks.txt")
    loop = Loop(run, under, log, checkpoints, lock, stop, progress, profile, watchdog)

    def go():
        if newest is None:
            checkpoints.save(0, state, loop.meta())
        with stop.phase("compile"):
            compiled = compiling.result()
        peak, how = peak_of(run.mesh)
        if processes.is_first():
            loop.planned = drift.planned(run, compiled)
            print(announce.page(run, compiled, notes, newest, peak, how, started), flush=True)
            if sys.stdout.isatty():
                first = (newest or 0) * config.data.batch
                print(look.first_rows(run, first), flush=True)
        with watchdog:
            return loop.fit(state, compiled, peak, make_sampler(run, under.refs))[1]

    return EXIT[end_in_order(go, loop, stop, checkpoints, log)]


def end_in_order(go, loop, stop, checkpoints, log):
    """Calls go() and, however it ends, waits for the last checkpoint and writes the summary.

    Returns:
        How it ended: "done", "early_stop", "stopped" or "interrupted"; an exception goes on.
    """
    status, error = "failed", ""

    def leave():  # another thread's, where this one does not come back in the grace time
        checkpoints.wait()
        log.finish(stopped(), loop.final(), "gave up waiting; the newest checkpoint stands")

    def stopped():
        return "interrupted" if stop.interrupted else "stopped"

    try:
        with stop.phase("train", on_deadline=leave):
            status = go()
            status = stopped() if status == "stopped" else status
    except BaseException as problem:
        error = f"{type(problem).__name__}: {problem}"
        raise
    finally:
        try:
            checkpoints.close()
        except BaseException as problem:
            status, error = "failed", error or f"{type(problem).__name__}: {problem}"
            raise
        finally:
            log.finish(status, loop.final(), error, loop.beside_plan())
    return status


def compile_step(run):
    """Compiles the train step for the run's shapes and shardings."""
    batch = setup.abstract_batch(run, run.config.data.batch)
    return run.step.lower(run.abstract, run.refs, batch).compile()


def peak_of(mesh):
    """Returns (FLOP/s of all devices of a mesh or None, how it is known)."""
    peak, how = devices.peak_flops(mesh.devices.flat[0])
    whole_machine = how.startswith("measured")
    return peak and peak * (1 if whole_machine else mesh.size), how


def restore_or_create(run, checkpoints, step, workdir):
    """Returns (state, `Base`, Progress) of a checkpoint, or of the start where `step` is None.

    Raises:
        ConfigError: the checkpoint was made with another tokenizer, model, optimizer or order of
            the data.
    """
    if step is None and not (run.config.init_from or run.refs):
        return run.create(place_key(run.mesh, run.config.seed)), base.NONE, Progress()
    if step is None:
        params, under = base.begin(run, workdir)
        return run.start(params), under, Progress()
    try:
        state, meta = checkpoints.restore(step, run.abstract)
    except MismatchError as error:
        raise ConfigError(str(error)) from None
    check_tokenizer(run.tokenizer, meta, step)
    check_data(run, meta, step)
    known = {field: meta[field] for field in vars(Progress()) if field in meta}
    under = base.again(run, workdir, meta.get("base"), training=True)
    return state, under, Progress(**known)


def is_finished(config, workdir, step):
    """Whether a run has done all its steps, or stopped early by this very config, and said so."""
    try:
        summary = json.loads((workdir / "summary.json").read_text())
        same = (workdir / "config.json").read_text() == records.config_json(config)
    except (OSError, ValueError):
        return False
    if summary["step"] != step:
        return False
    done = summary["status"] == "done" and step >= config.steps
    return done or (summary["status"] == "early_stop" and same)


def has_ended(config, workdir):
    """Whether a run has ended by itself, by its summary alone; all processes get one answer."""

    def look():
        try:
            step = json.loads((workdir / "summary.json").read_text())["step"]
        except (OSError, ValueError):
            return False
        return is_finished(config, workdir, step)

    return hosts.share("ended", look)


def changes(config, workdir):
    """Returns a line for each setting that differs from those the run had when it last started."""
    try:
        before = flat(json.loads((workdir / "config.json").read_text()))
    except (OSError, ValueError):
        return []
    now = flat(json.loads(records.config_json(config)))
    return [
        f"config.{name} was {before.get(name)} in this run, and is {now.get(name)} from here on"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


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
    (workdir / "config.json").write_text(records.config_json(config))
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
