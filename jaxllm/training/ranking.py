"""Validation losses of the steps that were saved, in a file beside them: which step is the best."""

import json
import math
import threading

from jaxllm.training import manifest

NAME = "scores.json"


class Ranking:
    """{step: validation loss} on the disk; one process writes, from any of its threads.

    Args:
        directory: of the checkpoints, an `etils.epath.Path`.
        report: called with one line of text about everything unexpected.
    """

    def __init__(self, directory, report):
        self._path, self._report = directory / NAME, report
        self._lock = threading.Lock()

    def add(self, step, loss, is_there):
        """Records the loss of a step, and forgets steps of which is_there(step) is false."""
        with self._lock:
            losses = {s: v for s, v in self._read().items() if is_there(s)}
            self._write(losses | {int(step): float(loss)})

    def forget(self, step):
        """Forgets a step, where it is known."""
        with self._lock:
            losses = self._read()
            if losses.pop(step, None) is not None:
                self._write(losses)

    def best(self, steps):
        """Returns those of some steps that have a finite loss, lowest first; of equals the
        earlier.
        """
        losses = self._read()
        ranked = [(losses[s], s) for s in steps if math.isfinite(losses.get(s, math.nan))]
        return [step for _, step in sorted(ranked)]

    def _read(self):
        try:
            return {int(s): float(v) for s, v in json.loads(self._path.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            self._report(
                f"{self._path} is damaged ({error}); validation losses of before are forgotten."
            )
            return {}

    def _write(self, losses):
        text = json.dumps({str(s): v for s, v in sorted(losses.items())})
        manifest.write_atomic(self._path, text.encode())
