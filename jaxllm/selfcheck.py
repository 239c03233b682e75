"""Checks on this machine, at toy size, what every run relies on.

    python -m jaxllm.selfcheck --config=configs/NAME.py

Accumulated equals whole, packed equals unpacked, remat on equals off, one device equals eight,
resumed equals uninterrupted. Prints a table; exit status 1 if anything does not hold. Runs on
eight fake CPU devices unless --devices=real.
"""

import tempfile

import jax
from absl import flags

from jaxllm import cli
from jaxllm.training import equalities

FAKE_DEVICES = 8


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_enum("devices", "fake", ["fake", "real"], "eight of the CPU, or this machine's")


def main(file, overrides):
    """Runs every check and prints the table."""
    path, _, arg = file.partition(":")
    parts = [part for part in arg.split(",") if part]
    smoke = parts if "smoke" in parts else [*parts, "smoke"]
    config, notes = cli.load_config(f"{path}:{','.join(smoke)}", overrides)
    cli.use_compile_cache(config.runtime.compile_cache)
    if flags.FLAGS.devices == "fake":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", FAKE_DEVICES)
    for note in notes:
        print(note)
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for result in equalities.check(config, folder):
            good &= result.holds
            print(
                f"{'ok  ' if result.holds else 'FAIL'}  {result.name:<28}  "
                f"{result.difference:8.1e} (allowed {result.allowed:.0e})  {result.seconds:5.1f} s"
                f"  {result.compared}",
                flush=True,
            )
    print("All hold." if good else "Some do not hold: see FAIL above.")
    return 0 if good else 1


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
