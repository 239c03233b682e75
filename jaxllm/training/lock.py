"""One writer a work directory.

On one machine `flock` decides: the kernel frees it however the holder dies. Between machines
`flock` may not reach, so the file also says who holds it and its content changes every few
seconds: whoever finds another machine's name in it watches whether it still changes. No two
clocks are compared.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
import uuid

from absl import logging
from etils import epath

from jaxllm.training import hosts

NAME = "run.lock"
HEARTBEAT_S = 5.0
SETTLE_S = 1.0  # without flock: time for another's claim to show
OLD_S = 24 * 3600  # silent for so long: dead, whatever the clocks


class LockError(RuntimeError):
    """Another process writes to this work directory."""


class RunLock:
    """Holds a work directory for this run. Process 0 takes it for all processes.

    Use as a context manager: entering raises LockError on every process if someone else holds it.
    """

    def __init__(self, workdir, *, heartbeat_s=HEARTBEAT_S, report=logging.warning):
        """Names the directory.

        Args:
            workdir: local path, or one that etils.epath knows such as gs://bucket/run.
            heartbeat_s: seconds between two signs of life.
            report: called with one line of text.
        """
        self.path = epath.Path(workdir) / NAME
        self.heartbeat_s, self.report = heartbeat_s, report
        self._local = "://" not in os.fspath(self.path)
        self._owner = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": uuid.uuid4().hex,
        }
        self._file, self._flocked, self._thread, self._lost = None, False, None, ""
        self._closed = threading.Event()

    def check(self):
        """Raises LockError if another machine has taken the directory meanwhile; cheap."""
        if self._lost:
            raise LockError(self._lost)

    def __enter__(self):
        hosts.share(f"{self.path}: lock", self._take)
        return self

    def __exit__(self, *_):
        if self._thread is None:
            return
        self._closed.set()
        self._thread.join()
        if not self._lost:
            self._write(b"")
        self._release()

    def _take(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if self._local:
                self._flock()
            self._outwait()
            self._beat()
            if not self._flocked:
                time.sleep(SETTLE_S)
                self._check_token(self._read())
                self.check()
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._keep, name="run lock", daemon=True)
        self._thread.start()

    def _flock(self):
        # The file stays when the lock is given back: whoever deletes a locked file lets a third
        # process lock another file of the same name.
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError):
                raise LockError(self._refusal(_parse(self._read()))) from None
            self.report(f"{self.path}: this file system has no flock ({error})")
            return
        self._flocked = True
        _held.add(self._file)

    def _outwait(self):
        """Watches for a sign of life of another machine that the file names."""
        before = self._read()
        owner = _parse(before)
        if not before.strip():
            return
        if self._flocked and owner.get("machine") == self._owner["machine"]:
            return  # it held flock on this machine, and we have it now
        if time.time() - owner.get("beat", time.time()) > OLD_S:
            return
        watch_s = 3 * self.heartbeat_s + SETTLE_S
        self.report(
            f"{self.path} names {_words(owner)}; watching for {watch_s:g} s whether it still runs"
        )
        end = time.monotonic() + watch_s
        while time.monotonic() < end:
            time.sleep(min(1.0, self.heartbeat_s / 2))
            now = self._read()
            if now != before:
                if not now.strip():
                    return  # given back while we watched
                raise LockError(self._refusal(_parse(now)))

    def _refusal(self, owner):
        return (
            f"{self.path.parent} is being written by {_words(owner)}. Two runs in one work "
            "directory would destroy each other's checkpoints.\n"
            "  Stop that process, wait until it has left, or use another --workdir."
        )

    def _keep(self):
        while not self._closed.wait(self.heartbeat_s):
            try:
                self._check_token(self._read())
                if self._lost:
                    self.report(self._lost)
                    return
                self._beat()
            except OSError as error:
                self.report(f"{self.path}: no sign of life given: {error}")

    def _check_token(self, data):
        """Notes in `_lost` if someone else's name is in the file."""
        owner = _parse(data)
        if owner.get("token", self._owner["token"]) != self._owner["token"]:
            self._lost = self._refusal(owner)

    def _beat(self):
        self._write(json.dumps({**self._owner, "beat": time.time()}).encode())

    def _read(self):
        try:
            return self.path.read_bytes()  # opened anew: network file systems refresh it then
        except FileNotFoundError:
            return b""

    def _write(self, data):
        if self._file is None:
            self.path.write_bytes(data)
            return
        # In place: flock belongs to this very file. Blanks instead of a cut, so that nobody reads
        # an empty file between the two.
        size = os.fstat(self._file).st_size
        os.pwrite(self._file, data.ljust(size), 0)

    def _release(self):
        if self._file is not None:
            _held.discard(self._file)
            os.close(self._file)
            self._file = None


_held = set()  # descriptors with a lock; a forked child must not keep one after its parent died


def _drop_in_child():
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_drop_in_child)


def _machine():
    """Tells machines apart that have the same name; changes when one is started anew."""
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


def _parse(data):
    try:
        owner = json.loads(data)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _words(owner):
    if "pid" not in owner:
        return "an unknown process"
    return f"process {owner['pid']} on host {owner.get('host')}, started {owner.get('started')}"
