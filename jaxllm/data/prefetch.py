"""A small thread that fetches batches ahead of the device."""

import queue
import threading

END = object()


class Prefetch:
    """Iterates over (step, fetch(step)) for steps start to stop - 1, `depth` steps ahead.

    An error of `fetch` is raised again where its step is consumed, with a note of the step. The
    thread is a daemon that holds no locks while it waits, so signals and the end of the
    program find it out of their way; `close` (or leaving a `with` block) joins it.

    Args:
        fetch: step -> anything; called from one other thread, in order, once a step.
        start: the first step.
        stop: the step before which to end.
        depth: most results held ready, at least 1.
    """

    def __init__(self, fetch, start, stop, depth=2):
        self._fetch, self._queue = fetch, queue.Queue(max(1, depth))
        self._closed, self._ended = threading.Event(), False
        self._thread = threading.Thread(
            target=self._run, args=(start, stop), name="prefetch", daemon=True
        )
        self._thread.start()

    def _run(self, start, stop):
        for step in range(start, stop):
            if self._closed.is_set():
                return
            try:
                item = (step, self._fetch(step), None)
            except BaseException as error:
                item = (step, END, error)
            if not self._put(item) or item[1] is END:
                return
        self._put((stop, END, None))

    def _put(self, item):
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self):
        return self

    def _get(self):
        while not (self._ended or self._closed.is_set()):
            try:
                return self._queue.get(timeout=0.5)  # a signal's handler may close us meanwhile
            except queue.Empty:
                continue
        raise StopIteration

    def __next__(self):
        step, value, error = self._get()
        if value is not END:
            return step, value
        self._ended = True
        if error is None:
            raise StopIteration
        error.add_note(f"While fetching the batch of step {step}.")
        raise error

    def close(self):
        """Stops and joins the thread, after the fetch it may be in; what is ready is dropped."""
        self._closed.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
