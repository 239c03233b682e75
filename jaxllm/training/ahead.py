"""Compiling a run's step ahead of time, for devices that need not be there."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import tempfile
import time
from typing import Any, NamedTuple

import jax

from jaxllm.training import records, setup


class Program(NamedTuple):
    """A compiled step.

    Attributes:
        text: of the optimized program.
        assignment: where its arrays lie, as the compiler writes it; "" where it does not.
        memory: `Compiled.memory_analysis()`.
        seconds: that compiling took.
    """

    text: str
    assignment: str
    memory: Any
    seconds: float


class DoesNotFitError(RuntimeError):
    """The compiler finds no room for a program.

    Attributes:
        needed: bytes of temporaries, by the compiler.
        room: bytes that the device has for them.
    """

    def __init__(self, needed, room):
        super().__init__(f"{needed / 1e9:.2f} GB of temporaries, and room for {room / 1e9:.2f} GB")
        self.needed, self.room = needed, room


def write_programs(folder=""):
    """Has the compiler write what it makes to a folder; call it before jax touches a device.

    The text of some programs, such as those for a v5p, cannot be had from jax, nor where their
    arrays lie.

    Args:
        folder: where to; "" for a temporary one.

    Returns:
        `folder`, or the temporary one, which goes when the process ends.
    """
    folder = folder or _scratch().name
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder} --xla_dump_hlo_as_text "
        "--xla_dump_hlo_module_re=jit_step"
    )
    return folder


@functools.cache
def _scratch():
    """A temporary directory."""
    return tempfile.TemporaryDirectory()


def remembered(config, machine, make):
    """Returns make(), or what it returned before for the same config, machine and code.

    Args:
        config: completed ConfigDict; `runtime.compile_cache` says where it is remembered.
        machine: words that name it.
        make: function -> what json can write.
    """
    if not config.runtime.compile_cache:
        return make()
    versions = [importlib.metadata.version(name) for name in ("jax", "jaxlib")]
    if importlib.util.find_spec("libtpu"):
        versions.append(importlib.metadata.version("libtpu"))
    sources = sorted(pathlib.Path(__file__).parents[1].rglob("*.py"))
    key = hashlib.sha256("\n".join([records.config_json(config), machine, *versions]).encode())
    for source in sources:
        key.update(source.read_bytes())
    place = pathlib.Path(config.runtime.compile_cache).expanduser() / "plans"
    file = place / f"{key.hexdigest()[:32]}.json"
    if file.is_file():
        return json.loads(file.read_text())
    data = make()
    place.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data))
    return data


def compile_step(config, devices, folder, vocab):
    """Compiles the train step of a config.

    Args:
        config: completed ConfigDict that `setup.check_program` has passed.
        devices: of the mesh; those of an abstract topology will do.
        folder: where `write_programs` has the compiler write; emptied of older programs.
        vocab: size of the vocabulary.

    Returns:
        `Program`.

    Raises:
        DoesNotFitError: the compiler says so.
    """
    for old in pathlib.Path(folder).glob("*jit_step*"):
        if old.is_file():
            old.unlink()
    start = time.perf_counter()
    run = setup.assemble_program(config, vocab, devices)
    batch = setup.abstract_batch(run, config.data.batch)
    platform = devices[0].platform
    lowered = run.step.trace(run.abstract, run.refs, batch).lower(lowering_platforms=(platform,))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = re.search(
            r"temporaries \(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", str(error)
        )
        if sizes is None:
            raise
        raise DoesNotFitError(*(float(size) * 2**30 for size in sizes.groups())) from None
    text = _newest(folder, "*jit_step*.after_codegen.txt") or compiled.as_text()
    assignment = _newest(folder, "*jit_step*buffer-assignment.txt")
    seconds = time.perf_counter() - start
    return Program(text, assignment, compiled.memory_analysis(), seconds)


def _newest(folder, pattern):
    """The text of the newest file of a pattern, or ""."""
    files = sorted(pathlib.Path(folder).glob(pattern), key=lambda file: file.stat().st_mtime)
    return files[-1].read_text() if files else ""
