"""Running one function over many tasks: in this process, or in several on this machine."""

import concurrent.futures
import multiprocessing
import sys
import time


def local(function, tasks, workers, progress):
    """Calls function(task) for every task.

    Args:
        function: of a module, so that other processes find it.
        tasks: what can be pickled.
        workers: processes; 1 is this one.
        progress: called with every result as it comes.

    Returns:
        [result], in the order of the tasks.

    Raises:
        RuntimeError: a process was killed, such as for want of memory. What is finished stands.
    """
    if workers == 1 or len(tasks) < 2:
        return [_told(function(task), progress) for task in tasks]
    # Spawned, not forked: this process may have threads.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(tasks)), context)
    try:
        futures = [pool.submit(function, task) for task in tasks]
        for future in concurrent.futures.as_completed(futures):
            _told(future.result(), progress)
        return [future.result() for future in futures]
    except concurrent.futures.process.BrokenProcessPool as error:
        raise RuntimeError(
            "A worker was killed, perhaps for want of memory: try fewer --config.workers. What is "
            "finished stands; the same command goes on from there."
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _told(result, progress):
    progress(result)
    return result


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
            line = (
                f"{self._label:<12} {self._done:>6}/{self._total} {self._bytes / 1e6:10,.1f} MB "
                f"{self._bytes / 1e6 / seconds:8.1f} MB/s {seconds:7.1f} s"
            )
            print(line, end="\n" if end else "\r", file=self._stream, flush=True)
