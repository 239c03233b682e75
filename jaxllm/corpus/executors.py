"""Running one function over many tasks: here, in several processes, on Ray or on Slurm.

Each task leaves its result in files, the report last, so nothing has to come back: an executor
returns when all of them have run, and whoever asked looks for the reports.
"""

import concurrent.futures
import multiprocessing
import os
import pathlib
import sys
import time

from jaxllm.data.errors import DataError

NEEDS = "pip install -r requirements-cluster.txt"
_POLL_S = 5.0  # between looks at what a cluster has finished


def local():
    """Processes on this machine, as many as `config.workers`; 1 is this one.

    Returns:
        run(function, tasks, workers, folder, progress): calls function(task) -> bytes of text that
        it went through, for every task; raises RuntimeError where a process was killed.
    """

    def run(function, tasks, workers, folder, progress):
        del folder
        if workers == 1 or len(tasks) < 2:
            for task in tasks:
                progress(function(task))
            return
        # Spawned, not forked: this process may have threads.
        context = multiprocessing.get_context("spawn")
        pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(tasks)), context)
        try:
            futures = [pool.submit(function, task) for task in tasks]
            for future in concurrent.futures.as_completed(futures):
                progress(future.result())
        except concurrent.futures.process.BrokenProcessPool as error:
            raise RuntimeError(
                "A worker was killed, perhaps for want of memory: try fewer --config.workers. What "
                "is finished stands; the same command goes on from there."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    return run


def ray(*, address="", memory_gb=2.0):
    """Ray, as many tasks at once as `config.workers`, carried by datatrove's executor.

    Args:
        address: of a running cluster, such as "auto"; "" starts one on this machine.
        memory_gb: of a task.

    Returns:
        as `local`; `folder` must be seen from all machines.
    """

    def run(function, tasks, workers, folder, progress):
        trove = _import("datatrove.executor.ray", "RayPipelineExecutor")
        cluster = _import("ray", "init")
        if not tasks:
            return
        # Workers find this package where this process does.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        cluster(
            address=address or None,
            ignore_reinit_error=True,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
            log_to_driver=False,
            logging_level="warning",
            **({} if address else {"num_cpus": workers, "include_dashboard": False}),
        )
        trove(
            [Step(function, tasks)],
            tasks=len(tasks),
            workers=workers,
            mem_per_cpu_gb=memory_gb,
            logging_dir=str(_logs(folder)),
            skip_completed=False,
        ).run()
        _wait(tasks, folder, progress, 0)

    return run


def slurm(*, partition="", hours=4.0, memory_gb=4, setup=""):
    """Slurm, as many tasks at once as `config.workers`, carried by datatrove's executor.

    Args:
        partition: of the cluster.
        hours: that a task may take.
        memory_gb: of a task.
        setup: a shell line that a job begins with, such as "source venv/bin/activate".

    Returns:
        as `local`; `folder` must be seen from all machines.

    Raises:
        DataError: no partition is named.
    """
    if not partition:
        raise DataError("partition is empty; name one of those that sinfo lists.")

    def run(function, tasks, workers, folder, progress):
        trove = _import("datatrove.executor.slurm", "SlurmPipelineExecutor")
        if not tasks:
            return
        trove(
            [Step(function, tasks)],
            tasks=len(tasks),
            workers=workers,
            time=f"{int(hours)}:{round(hours % 1 * 60):02d}:00",
            partition=partition,
            mem_per_cpu_gb=memory_gb,
            env_command=setup or None,
            job_name=f"jaxllm {folder.name}",
            logging_dir=str(_logs(folder)),
            skip_completed=False,
        ).run()
        _wait(tasks, folder, progress, hours * 3600)

    return run


class Step:
    """One task of many, as datatrove calls it."""

    def __init__(self, function, tasks):
        self._function, self._tasks = function, tasks

    def __call__(self, data=None, rank=0, world_size=1):
        """Runs the task of a rank."""
        del data, world_size
        self._function(self._tasks[rank])


def _import(module, name):
    try:
        found = getattr(__import__(module, fromlist=[name]), name)
        logger = sys.modules.get("loguru")
        if logger:  # it tells of every task
            logger.logger.disable("datatrove")
        return found
    except ImportError as error:
        raise DataError(f"config.executor needs {error.name or module}. Try {NEEDS}.") from None


def _logs(folder):
    """A folder of this run's logs, of its own, so that an older run's are not taken for them."""
    return pathlib.Path(folder) / "logs" / f"{time.time_ns()}"


def _wait(tasks, folder, progress, seconds):
    """Waits, up to so many seconds, until every task has left its report."""
    left, end = [task.name for task in tasks], time.monotonic() + seconds
    while True:
        done = [name for name in left if (pathlib.Path(folder) / f"{name}.json").is_file()]
        for _ in done:
            progress(0)
        left = [name for name in left if name not in done]
        if not left or time.monotonic() > end:
            break
        time.sleep(_POLL_S)
    if left:
        raise RuntimeError(
            f"{len(left)} of {len(tasks)} tasks have failed, such as {left[0]}; see "
            f"{pathlib.Path(folder) / 'logs'}. What is finished stands; the same command goes on."
        )


EXECUTORS = {"local": local, "ray": ray, "slurm": slurm}


class Progress:
    """A line on the terminal: tasks done, and how fast.

    Args:
        label: what is going on.
        total: tasks.
        stream: where to; on what is no terminal only the end is told.
    """

    def __init__(self, label, total, stream=None):
        self._label, self._total, self._done, self._bytes = label, total, 0, 0
        self._stream, self._start = stream or sys.stderr, time.monotonic()

    def __call__(self, size):
        """Counts a task that went through so many bytes of text."""
        self._done += 1
        self._bytes += size
        end = self._done == self._total
        if self._stream.isatty() or end:
            seconds = max(time.monotonic() - self._start, 1e-3)
            speed = f"{self._bytes / 1e6:10,.1f} MB {self._bytes / 1e6 / seconds:8.1f} MB/s"
            line = f"{self._label:<12} {self._done:>6}/{self._total} {speed} {seconds:7.1f} s"
            print(line, end="\n" if end else "\r", file=self._stream, flush=True)
