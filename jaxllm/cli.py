"""What every command does: flags, the config, the compile cache, exit statuses."""

import hashlib
import os
import pathlib
import platform
import sys

import jax
import jaxlib
from absl import flags, logging

from jaxllm import host, settings
from jaxllm.config import ConfigError, near
from jaxllm.data import DataError
from jaxllm.tokenizers import TokenizerError
from jaxllm.training import ranges
from jaxllm.training.lock import LockError
from jaxllm.training.setup import KINDS
from jaxllm.training.stop import INTERRUPTED_STATUS

# Wrong settings or input: not worth a restart, so a supervisor can tell them from a crash.
CONFIG_STATUS = 2
EXPECTED_ERRORS = (ConfigError, DataError, TokenizerError, LockError, flags.Error)


def run(doc, define_flags, main, commands=()):
    """Runs a command and exits.

    Args:
        doc: the module's docstring, printed by --help.
        define_flags: defines the command's absl flags.
        main: (config file or "", settings on the command line) -> exit status; where there are
            `commands`, the one that was given comes first.
        commands: words of which one must come first on the command line.
    """
    define_flags()
    logging.set_verbosity(logging.WARNING)  # Orbax tells 30 lines a checkpoint
    logging.get_absl_handler().python_handler.stream = sys.stderr
    try:
        file, overrides, rest = settings.split_arguments(sys.argv[1:])
        if {"--help", "-h", "-help"} & set(rest):
            print(doc + "\nFlags:\n" + flags.FLAGS.main_module_help())
            sys.exit(0)
        chosen = [_command(rest, commands)] if commands else []
        extra = flags.FLAGS([sys.argv[0], *rest])[1:]
        if extra:
            raise ConfigError(f"Unknown argument {extra[0]!r}. See --help.")
        status = main(*chosen, file, overrides)
    except EXPECTED_ERRORS as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(CONFIG_STATUS)
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    sys.exit(status)


def _command(words, commands):
    """Takes the first word off a command line.

    Raises:
        ConfigError: it is none of the commands.
    """
    if not words or words[0] not in commands:
        word = words[0] if words else "nothing"
        raise ConfigError(
            f"The first word is {word!r}.{near(word, commands)} Known: {', '.join(commands)}. "
            "See --help."
        )
    return words.pop(0)


def load_config(file, overrides):
    """Returns (config, notes) of a run's config file and the settings that go over it."""
    return load_with(file, overrides, KINDS, "model", "configs/text.py")


def load_with(file, overrides, kinds, section, like):
    """Returns (config, notes) of a config file of a kind.

    Args:
        file, overrides, kinds: as `settings.load` takes them.
        section: that all configs of the kind have.
        like: one of them.

    Raises:
        ConfigError: it is of another kind.
    """
    config, notes = settings.load(file, overrides, kinds)
    if section not in config:
        raise ConfigError(
            f"--config={file} has no section {section!r}: it is for another command.\n"
            f"  Try --config={like}."
        )
    return config, notes


def start(config):
    """Sets what must be set before a device is touched; call it as soon as there is a config.

    Args:
        config: the whole ConfigDict.

    Raises:
        ConfigError: a plain setting out of its range.
    """
    ranges.check(config)
    host.keep_freed_memory()
    use_compile_cache(config.runtime.compile_cache)
    present_cores(config)


def present_cores(config):
    """Has jax present a CPU's cores as the devices that a config asks for, or as many as pay."""
    if config.runtime.cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.runtime.cpu_devices)
    elif "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", host.useful_devices(config))


def use_compile_cache(directory):
    """Keeps compiled programs in a private directory of this jaxlib and this processor.

    Entries are machine code: one made by another jaxlib or for other instructions can crash.
    """
    if not directory:
        return
    machine = hashlib.sha256(f"{platform.processor()} {_cpu_flags()}".encode()).hexdigest()[:12]
    path = pathlib.Path(directory).expanduser() / f"jaxlib-{jaxlib.__version__}-{machine}"
    path.mkdir(parents=True, exist_ok=True)
    os.chmod(path, 0o700)
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _cpu_flags():
    """The processor's instruction sets, where the system tells."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith("flags")), "")


def define_process_flags():
    """Defines --coordinator, --processes and --process_id."""
    flags.DEFINE_string("coordinator", "", "host:port of process 0; TPU slices and Slurm tell")
    flags.DEFINE_integer("processes", 0, "processes of the run")
    flags.DEFINE_integer("process_id", -1, "number of this process, from 0")


def process_flags():
    """The three, as `processes.join` takes them."""
    f = flags.FLAGS
    return f.coordinator, f.processes, f.process_id
