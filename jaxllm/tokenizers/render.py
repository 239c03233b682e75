"""Renders Jinja templates for `sandbox`; run as a process of its own, which may be killed.

Imports nothing of this package, so that it starts fast and runs from its path. Requests and
answers are JSON behind four bytes of length, on standard input and output.
"""

import datetime
import json
import os
import resource
import signal
import struct
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

MEMORY_BYTES = 1 << 30
TEMPLATES = 64


def main():
    """Answers requests until the other side is gone."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not speak between the answers
    compiled = {}
    while len(size := source.read(4)) == 4:
        request = json.loads(source.read(struct.unpack("<I", size)[0]))
        # Ends this process where the other side, which would, has been killed itself.
        signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + 1)
        content = json.dumps(answer(request, compiled)).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        target.write(struct.pack("<I", len(content)) + content)
        target.flush()


def answer(request, compiled):
    """Renders a request.

    Args:
        request: {"template", "variables", "limit": most characters, "open", "close": what is
            put around text of the {% generation %} tag, "strict": undefined names are errors,
            "now": seconds since 1970, or null for the time it is, "timeout_s"}.
        compiled: {(template, …): compiled}, kept from request to request.

    Returns:
        {"text"}, or {"error", "kind"}.
    """
    try:
        key = tuple(request[name] for name in ("template", "open", "close", "strict"))
        if key not in compiled:
            while len(compiled) >= TEMPLATES:
                compiled.pop(next(iter(compiled)))
            compiled[key] = environment(*key[1:]).from_string(request["template"])
        template, parts, size = compiled[key], [], 0
        template.environment.now = request["now"]
        for part in template.generate(**request["variables"]):
            parts.append(part)
            size += len(part)
            if size > request["limit"]:
                return {"kind": "limit", "error": f"gave more than {request['limit']:,} characters"}
        return {"text": "".join(parts)}
    except MemoryError:
        compiled.clear()
        return {"kind": "limit", "error": f"needed more than {MEMORY_BYTES >> 20} MiB"}
    except jinja2.TemplateSyntaxError as error:
        return {"kind": "syntax", "error": f"is no Jinja: {error.message} (line {error.lineno})"}
    except RecursionError:
        return {"kind": "limit", "error": "nests too deep"}
    except Exception as error:  # whatever a template can raise is its own fault
        return {"kind": "raised", "error": f"{type(error).__name__}: {error}"[:2_000]}


class Generation(jinja2.ext.Extension):
    """{% generation %}…{% endgeneration %}: what the model is to learn to say."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marked = self.call_method("_mark", lineno=line)
        return jinja2.nodes.CallBlock(marked, [], [], body).set_lineno(line)

    def _mark(self, caller):
        return self.environment.open + caller() + self.environment.close


def environment(before, after, strict):
    """Makes the sandbox, with the functions that templates in Hugging Face's folders use."""
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
        undefined=jinja2.StrictUndefined if strict else jinja2.Undefined,
    )
    made.open, made.close, made.now = before, after, None
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda form: moment(made.now).strftime(form)
    return made


def moment(now):
    """The time in this place, of seconds since 1970 or as it is."""
    return datetime.datetime.fromtimestamp(now) if now is not None else datetime.datetime.now()


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    """JSON as it is; Jinja's own filter writes <, > and & as escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def refuse(message):
    """raise_exception, by which templates refuse a chat."""
    raise jinja2.TemplateError(str(message))


if __name__ == "__main__":
    main()
