"""Jinja templates that others wrote, rendered where they can do no harm.

Jinja's sandbox keeps a template from Python's insides, but not from running for ever or from
filling the memory, so templates are rendered in a child process with limits on both.
"""

import atexit
import json
import os
import pathlib
import selectors
import struct
import subprocess
import sys
import threading
import time

from jaxllm.tokenizers.base import TokenizerError

TIMEOUT_S = 10.0
CHARACTERS = 16 << 20  # of a rendered text
TEMPLATE_CHARACTERS = 1 << 20
_LOCK = threading.Lock()
_CHILD = None


class TemplateError(TokenizerError):
    """A template that cannot be rendered. `kind`: "syntax", "raised", "limit"."""

    def __init__(self, message, kind):
        super().__init__(message)
        self.kind = kind


def render(template, variables, *, around=("", ""), strict=False, now=None, timeout_s=TIMEOUT_S):
    """Renders a Jinja template.

    Args:
        template: its text.
        variables: {name: what JSON can hold}.
        around: what is put before and after text within {% generation %} tags.
        strict: a name that is not there is an error; otherwise it is empty, as in Jinja.
        now: seconds since 1970 that strftime_now takes for the time; None for the time it is.
        timeout_s: seconds after which rendering is given up.

    Returns:
        The text.

    Raises:
        TemplateError: the template is no Jinja, raises, takes more than `timeout_s`, 1 GiB or
            16 million characters; or the variables are not what JSON can hold.
    """
    if len(template) > TEMPLATE_CHARACTERS:
        raise TemplateError(
            f"has {len(template):,} characters, of {TEMPLATE_CHARACTERS:,}", "limit"
        )
    before, after = around
    request = {"template": template, "variables": variables, "limit": CHARACTERS, "now": now}
    request |= {"open": before, "close": after, "strict": strict}
    request["timeout_s"] = timeout_s
    try:
        content = json.dumps(request).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TemplateError(
            f"its variables are not what JSON can hold: {error}", "raised"
        ) from None
    with _LOCK:
        answer = _ask(content, timeout_s)
    if "text" not in answer:
        raise TemplateError(answer["error"], answer["kind"])
    return answer["text"]


def _ask(content, timeout_s):
    """Sends a request and returns the answer; the child is replaced where it gives none."""
    child = _child()
    end = time.monotonic() + timeout_s
    try:
        _send(child.stdin.fileno(), struct.pack("<I", len(content)) + content, end)
        size = struct.unpack("<I", _receive(child.stdout.fileno(), 4, end))[0]
        return json.loads(_receive(child.stdout.fileno(), size, end))
    except TimeoutError:
        _stop()
        return {"kind": "limit", "error": f"took more than {timeout_s:g} s"}
    except (EOFError, BrokenPipeError, ValueError):
        status = _stop()
        return {"kind": "limit", "error": f"ended the process that rendered it ({status})"}
    except BaseException:  # an answer that is left unread would be taken for the next one's
        _stop()
        raise


def _child():
    global _CHILD
    if _CHILD is None or _CHILD.poll() is not None or _CHILD.owner != os.getpid():
        program = pathlib.Path(__file__).with_name("render.py")
        _CHILD = subprocess.Popen(
            [sys.executable, "-P", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for this process to see to
        )
        _CHILD.owner = os.getpid()  # a fork must not speak with its parent's child
        os.set_blocking(_CHILD.stdin.fileno(), False)
    return _CHILD


def _stop():
    """Ends the child; returns its status."""
    global _CHILD
    child, _CHILD = _CHILD, None
    if child is None or child.owner != os.getpid():
        return None
    child.kill()
    status = child.wait()
    child.stdin.close()
    child.stdout.close()
    return status


atexit.register(_stop)


def _wait(file, event, end):
    with selectors.DefaultSelector() as selector:
        selector.register(file, event)
        if not selector.select(max(0.0, end - time.monotonic())):
            raise TimeoutError


def _send(file, content, end):
    content = memoryview(content)
    while content:
        _wait(file, selectors.EVENT_WRITE, end)
        content = content[os.write(file, content[: 1 << 16]) :]


def _receive(file, size, end):
    parts = []
    while size:
        _wait(file, selectors.EVENT_READ, end)
        part = os.read(file, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
