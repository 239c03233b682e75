"""What the processes of one run tell each other without touching a device.

Messages go through the key-value store of jax's coordination service, which
`jax.distributed.initialize` starts. Unlike a collective, it may be used from any thread, has a
deadline, and does not wait for the device. jax offers no public name for it.
"""

import json
import threading
import time

from jax._src import distributed

_lock = threading.Lock()
_calls = {}


class HostError(RuntimeError):
    """Process 0 failed at something that every process waits for."""


def count():
    """Number of processes in the run; does not start a backend."""
    return distributed.global_state.num_processes or 1


def index():
    """Number of this process in the run; does not start a backend."""
    return distributed.global_state.process_id or 0


def client():
    """The client of the coordination service, or None in a run of one process."""
    return distributed.global_state.client if count() > 1 else None


def publish(key, value):
    """Sets a key for all processes to see; the first value of a key stays."""
    try:
        client().key_value_set(key, json.dumps(value))
    except Exception as error:
        if "ALREADY_EXISTS" not in str(error):
            raise


def look(key):
    """Returns the value of a key, or None where nobody has set it yet."""
    try:
        return json.loads(client().key_value_try_get(key))
    except Exception as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def look_all(folder):
    """Returns the values of all keys directly below `folder`/ that are set so far."""
    return [json.loads(value) for _, value in client().key_value_dir_get(f"{folder}/")]


def get(key, timeout_s, what):
    """Waits for the value of a key.

    Raises:
        TimeoutError: nobody set it within `timeout_s` seconds; names `what` was awaited.
    """
    start = time.monotonic()
    try:
        return json.loads(client().blocking_key_value_get(key, max(1, int(timeout_s * 1000))))
    except Exception as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise TimeoutError(
            f"process {index()} waited {time.monotonic() - start:.0f} s for {what}. "
            "Another process is stuck or dead: see its log."
        ) from error


def share(name, function, timeout_s=600):
    """Calls function() on process 0 and returns its result on every process.

    All processes make the same calls of one `name` in the same order.

    Args:
        name: what is decided, in plain words; the key of the message.
        function: no arguments; returns what JSON can hold.
        timeout_s: how long the others wait for process 0, in seconds.

    Raises:
        HostError: on the other processes, when function() raised on process 0 (which raises the
            error itself).
        TimeoutError: process 0 gave no answer in time.
    """
    if count() == 1:
        return function()
    with _lock:
        _calls[name] = call = _calls.get(name, 0) + 1
    key = f"jaxllm/share/{name}/{call}"
    if index() != 0:
        answer = get(key, timeout_s, f"process 0 to answer: {name}")
        if "error" in answer:
            raise HostError(f"process 0 failed ({name}): {answer['error']}")
        return answer["value"]
    try:
        value = function()
    except BaseException as error:
        publish(key, {"error": f"{type(error).__name__}: {error}"})
        raise
    publish(key, {"value": value})
    return value
