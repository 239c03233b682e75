"""Leaving in time: SIGTERM and Ctrl-C in every phase, together on every host, and never stuck.

Python runs a signal's handler in the main thread, which cannot do so while XLA compiles; and
`jax.distributed.initialize` takes SIGTERM for itself. Here the signal's number goes through
`signal.set_wakeup_fd` to a thread of our own, which keeps the deadline whatever the main thread
does. (Blocking the signals and waiting for them with sigwait would need every thread of every
library to be started after, and child processes would inherit the block.)
"""

import contextlib
import faulthandler
import itertools
import os
import select
import signal
import socket
import sys
import threading
import time

import jax
from absl import logging

from jaxllm.training import hosts

INTERRUPTED_STATUS = 130  # after Ctrl-C: what a shell gives a process killed by SIGINT
STUCK_STATUS = 75  # the watchdog's: EX_TEMPFAIL of sysexits.h, "try again"
SIGNALS = (signal.SIGTERM, signal.SIGINT)
RESERVE_S = 3.0  # of the grace time, by default for what is done when the main thread is given up
DOUBLE_S = 0.3  # two Ctrl-C closer than this are one, sent by the terminal and by a launcher
POLL_S = 0.2  # how often a process looks whether another was asked to stop
_opened = itertools.count()
_active = []  # the Stop that is entered


class Stop:
    """Hears SIGTERM and Ctrl-C, tells the loop, and ends the process if the loop is too slow.

    Use as a context manager in the main thread, around everything from joining the other
    processes to the last write. Attributes: `requested` (bool, cheap), `reason` (text or "").
    """

    def __init__(
        self, grace_s=10.0, reserve_s=RESERVE_S, *, on_deadline=None, report=logging.warning
    ):
        """Says how long there is.

        Args:
            grace_s: seconds from the signal to the end of the process, whatever happens.
            reserve_s: so long before that, the main thread is given up and on_deadline() called.
            on_deadline: no arguments; called in another thread, for instance to wait for the
                checkpoint in flight and to write the summary. A phase may name its own.
            report: called with one line of text.

        Raises:
            ValueError: reserve_s is not between 0 and grace_s.
        """
        if not 0 <= reserve_s < grace_s:
            raise ValueError(
                f"grace_s={grace_s} and reserve_s={reserve_s}: the reserve is a part of the grace "
                "time. Try grace_s=10 and reserve_s=3."
            )
        self.grace_s, self.reserve_s, self.report = grace_s, reserve_s, report
        self.reason = ""
        self._signalled_s = None  # time of the request
        self._phases = [("run", on_deadline, grace_s - reserve_s)]
        self._closed = threading.Event()
        self._peers = _Peers(self, f"jaxllm/stop/{next(_opened)}")

    @property
    def requested(self):
        return self._signalled_s is not None

    @property
    def interrupted(self):
        """Whether it was Ctrl-C that asked."""
        return signal.SIGINT.name in self.reason

    def request(self, reason):
        """Asks for the same as a signal does; the first reason counts."""
        if self.requested:
            return
        self.reason, self._signalled_s = reason, time.monotonic()
        self.report(f"{reason}: leaving within {self.grace_s:g} s (now: {self._phases[-1][0]})")
        self._wake()

    def listen(self):
        """Starts to hear the other processes; call when they have joined (`agreed` does, too)."""
        if hosts.count() > 1:
            self._peers.start()

    def agreed(self, step=-1):
        """Whether to stop here; the same answer on every process. Never waits for the device.

        Every process must call `agreed` and `interrupts` in the same order, for instance once a
        step. Normally this compares two numbers. When any process has been asked to stop, a call
        waits for the few messages that settle where: at the first call that no process has passed.
        (A flag summed over the devices would have to be fetched, that is waited for, to be read.)

        Args:
            step: for the report.
        """
        stopping = self._peers.tick() if hosts.count() > 1 else self.requested
        if stopping and step >= 0:
            self.report(f"stops after step {step}: {self.reason}")
        return stopping

    def interrupts(self):
        """`agreed`, for places between steps, such as the batches of a validation."""
        return self.agreed()

    @contextlib.contextmanager
    def phase(self, name, on_deadline=None, patience_s=None):
        """Names what the main thread does, for reports and for the deadline.

        Args:
            name: such as "compile".
            on_deadline: instead of the function given at the start.
            patience_s: how many seconds after the signal the main thread is given up; 0 where
                there is nothing to wait for. None for grace_s - reserve_s.
        """
        _, outer, _ = self._phases[-1]
        patience_s = self.grace_s - self.reserve_s if patience_s is None else patience_s
        self._phases.append((name, on_deadline or outer, min(patience_s, self.grace_s)))
        self._wake()
        try:
            yield
        finally:
            self._phases.pop()

    def __enter__(self):
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Stop must be entered in the main thread, which owns the signals.")
        if _active:
            raise RuntimeError("Another Stop is entered already; pass that one on.")
        # The service would put its own handler in place of ours, and only its sync point in the
        # loop would ever see the signal.
        jax.config.update("jax_enable_preemption_service", False)
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_descriptor = signal.set_wakeup_fd(
            self._writer.fileno(), warn_on_full_buffer=False
        )
        self._old = {number: signal.signal(number, _do_nothing) for number in SIGNALS}
        self._thread = threading.Thread(target=self._watch, name="stop", daemon=True)
        self._thread.start()
        _active.append(self)
        return self

    def __exit__(self, *_):
        _active.remove(self)
        self._closed.set()
        self._peers.close()
        signal.set_wakeup_fd(self._old_descriptor)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._wake()
        self._thread.join(timeout=1)
        self._reader.close()
        self._writer.close()

    def _wake(self):
        with contextlib.suppress(OSError, AttributeError):  # full, closed, or not yet entered
            self._writer.send(b"\0")

    def _watch(self):
        """The thread: hears signals, keeps the deadline."""
        first_interrupt_s = None
        while not self._closed.is_set():
            left = self._deadline_s() - time.monotonic() if self.requested else None
            if left is not None and left <= 0:
                return self._give_up()
            ready, _, _ = select.select([self._reader], [], [], left)
            numbers = set(self._reader.recv(4096)) if ready else set()
            now = time.monotonic()
            if signal.SIGINT in numbers:
                if first_interrupt_s is not None and now - first_interrupt_s > DOUBLE_S:
                    self.report("second Ctrl-C: leaving at once; nothing more is saved")
                    os._exit(INTERRUPTED_STATUS)
                first_interrupt_s = first_interrupt_s or now
            for number in numbers.intersection(SIGNALS):
                self.request(f"got {signal.Signals(number).name}")

    def _deadline_s(self):
        return self._signalled_s + self._phases[-1][2]

    def _give_up(self):
        """Ends the process from this thread: emergency function first, then the hard deadline."""
        name, on_deadline, _ = self._phases[-1]
        self.report(f"{name} goes on after {self.reason}; the process ends without it")
        result = []

        def leave():
            try:
                if on_deadline is not None:
                    on_deadline()
                result.append(INTERRUPTED_STATUS if self.interrupted else 0)
            except BaseException as error:
                self.report(f"could not leave cleanly: {type(error).__name__}: {error}")
                result.append(1)
            sys.stdout.flush()
            sys.stderr.flush()

        thread = threading.Thread(target=leave, daemon=True)
        thread.start()
        thread.join(max(0.0, self._signalled_s + self.grace_s - time.monotonic()))
        if self._closed.is_set():  # the main thread came out after all
            return
        if not result:
            self.report(f"no clean end within {self.grace_s:g} s of the signal; leaving")
        os._exit(result[0] if result else 1)


class _Peers:
    """Settles with the other processes where to stop, through the coordination service.

    Each process counts its calls of `tick`. Once one process has been asked to stop, every
    process says how many calls it has passed and lets no further one pass until all have spoken;
    process 0 then names the next call after the furthest. The threads speak, not the loops: a loop
    may be waiting for a device that waits for another host's next step.
    """

    def __init__(self, stop, prefix):
        self._stop, self._prefix = stop, prefix
        self._changed = threading.Condition()
        self._ticks, self._said, self._end = 0, False, None
        self._closed, self._started = threading.Event(), False
        self._thread = threading.Thread(target=self._talk, name="stop peers", daemon=True)

    def start(self):
        # Not before everyone has joined: a call on a client that is still connecting ends the
        # process with "wrong service incarnation".
        if not self._started:
            self._started = True
            self._thread.start()

    def tick(self):
        self.start()
        with self._changed:
            # Ends with the answer, or with the process at the deadline of Stop.
            self._changed.wait_for(lambda: self._end is not None or not self._said)
            self._ticks += 1
            return self._end is not None and self._ticks >= self._end

    def close(self):
        """Says that this process passes no further call, so that the others need not wait."""
        self._closed.set()
        if not self._started:
            return
        self._thread.join(timeout=2)
        with contextlib.suppress(Exception):  # the others may have left already
            self._say()

    def _talk(self):
        complained = False
        while self._end is None and not self._closed.wait(0.02 if self._said else POLL_S):
            try:
                self._exchange()
            except Exception as error:
                if not complained and not self._closed.is_set():
                    self._stop.report(f"cannot ask the other processes whether to stop: {error}")
                complained = True

    def _exchange(self):
        if not self._stop.requested:
            asked = hosts.look(f"{self._prefix}/asked")
            if asked is not None:
                self._stop.request(asked)
        if not self._stop.requested:
            return
        if not self._said:
            hosts.publish(f"{self._prefix}/asked", f"process {hosts.index()} {self._stop.reason}")
            self._say()
        if hosts.index() == 0:
            passed = hosts.look_all(f"{self._prefix}/passed")
            if len(passed) == hosts.count():
                hosts.publish(f"{self._prefix}/end", max(passed) + 1)
        end = hosts.look(f"{self._prefix}/end")
        if end is not None:
            with self._changed:
                self._end = end
                self._changed.notify_all()

    def _say(self):
        with self._changed:
            self._said, passed = True, self._ticks
        hosts.publish(f"{self._prefix}/passed/{hosts.index()}", passed)


class Watchdog:
    """Ends a process whose loop has stood still for too long, after dumping what it was doing.

    A peer that hangs without dying is not noticed by jax: everyone else waits for ever.
    """

    def __init__(self, limit_s, report=logging.warning, path=None):
        """Sets the limit; the clock runs inside `with`.

        Args:
            limit_s: seconds between two calls of `beat`; 0 switches the watchdog off.
            report: called with one line of text.
            path: file that gets the stacks of all threads; None for standard error.
        """
        self.limit_s, self.report, self.path = limit_s, report, path
        self._beat_s, self._paused = time.monotonic(), 0
        self._closed = threading.Event()

    def beat(self):
        """Says that the loop moves on."""
        self._beat_s = time.monotonic()

    @contextlib.contextmanager
    def paused(self):
        """For what may rightly take long, such as compiling."""
        self._paused += 1
        try:
            yield
        finally:
            self.beat()
            self._paused -= 1

    def __enter__(self):
        self.beat()
        if self.limit_s:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_):
        self._closed.set()

    def _watch(self):
        while not self._closed.wait(min(1.0, self.limit_s / 4)):
            silent_s = time.monotonic() - self._beat_s
            if silent_s < self.limit_s or self._paused:
                continue
            where = self.path or "standard error"
            self.report(
                f"no step for {silent_s:.0f} s (limit {self.limit_s:g} s): this process or another "
                f"is stuck. Stacks are in {where}; leaving with status {STUCK_STATUS}."
            )
            with open(self.path, "a") if self.path else contextlib.nullcontext(sys.stderr) as file:
                faulthandler.dump_traceback(file, all_threads=True)
            os._exit(STUCK_STATUS)


def _do_nothing(number, frame):
    """A Python handler must exist for the number to reach the wakeup descriptor."""


def _forget_in_child():
    """A forked child must not tell its parent's thread of its own signals."""
    if _active:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_in_child)
