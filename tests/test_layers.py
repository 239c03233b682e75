"""The design as a test: imports point down, and stand where they can be seen."""

import ast
import pathlib

import pytest

LAYERS = [  # a package may import packages on earlier lines, never its own or later
    {"dims", "config", "figures", "host", "trees", "settings", "whole_files"},
    {"sharding", "tokenizers"},
    {"models", "data", "optim"},
    {"objectives", "finetune", "compression", "context"},
    {"rollouts", "evals", "scaling"},
    {"training"},
    {"corpus"},
    {"cli"},  # the flags that commands share
    {
        *("prepare", "train", "evaluate", "sample", "plan"),
        *("convert", "sweep", "compare", "selfcheck"),
    },
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FREE = {  # within the lowest layer, in which files may import one another in this order
    "figures": {"config"},
    "settings": {"config"},
}
ROOT = pathlib.Path(__file__).parents[1]
# configs/base.py lists the fields of a model, which are those of the model's own dataclass.
FOR_CONFIGS = {"jaxllm.config", "jaxllm.models.config"}


def imported_modules(tree, package):
    """Yields (node, dotted name) of all that a file imports, however it is written.

    Args:
        tree: parsed file.
        package: dotted name of the package that the file is in, for relative imports.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield from ((node, f"{base}.{name.name}") for name in node.names)


def upward_imports(source, file):
    """Lists what is wrong with the imports of a file of jaxllm.

    Args:
        source: its text.
        file: its path below jaxllm, with "/".
    """
    parts = pathlib.PurePosixPath(file).with_suffix("").parts
    here, package, tree = parts[0], ".".join(["jaxllm", *parts[:-1]]), ast.parse(source)
    if here != "__init__" and here not in RANK:
        return [f"{file}: {here} is on no line of LAYERS"]
    within = {id(n) for f in ast.walk(tree) if _is_function(f) for n in ast.walk(f)}
    wrong = []
    for node, name in imported_modules(tree, package):
        top, *rest = name.split(".")
        if top == "configs":
            wrong.append(f"{file}:{node.lineno}: jaxllm imports {name}")
        if top != "jaxllm":
            continue
        there = rest[0] if rest else "__init__"
        if id(node) in within:
            wrong.append(f"{file}:{node.lineno}: {name} is imported inside a function")
        if here == "__init__":
            wrong.append(f"{file}:{node.lineno}: the package itself imports nothing")
        elif there != here and there not in FREE.get(here, ()):
            if there not in RANK:
                wrong.append(f"{file}:{node.lineno}: {there} is on no line of LAYERS")
            elif RANK[there] >= RANK[here]:
                wrong.append(f"{file}:{node.lineno}: {there} is not below {here}")
    return wrong


def _is_function(node):
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def test_imports_point_down():
    """A reader of one package has to know only those on lower lines."""
    root = ROOT / "jaxllm"
    wrong = []
    for path in sorted(root.rglob("*.py")):
        wrong += upward_imports(path.read_text(), path.relative_to(root).as_posix())
    assert not wrong, "\n".join(wrong)


def test_configs_import_only_what_describes():
    """A config is read before any device is touched; it may import other configs."""
    wrong = []
    for path in sorted((ROOT / "configs").rglob("*.py")):
        for node, name in imported_modules(ast.parse(path.read_text()), "configs"):
            if name.split(".")[0] == "jaxllm" and name.rpartition(".")[0] not in FOR_CONFIGS:
                wrong.append(f"{path.name}:{node.lineno}: {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        "import jaxllm.training.loop",
        "import os, jaxllm.training as training",
        "from jaxllm.training import loop",
        "from jaxllm import training",
        "from ..training import loop",
        "from .. import training",
        "from jaxllm import objectives, training",
        "if True:\n    from jaxllm.training.loop import Loop",
        "def f():\n    from jaxllm.sharding import mesh",
        "def f():\n    import jaxllm.sharding",
        "from jaxllm import optim",
        "import jaxllm",
        "from configs import base",
        "from jaxllm.nowhere import x",
    ],
)
def test_an_upward_import_is_seen(source):
    """In every form that Python has for it; `models` may import none of these so."""
    assert upward_imports(source, "models/layers.py")


@pytest.mark.parametrize(
    "source",
    [
        "import jaxllm.sharding.mesh",
        "from jaxllm.config import ConfigError",
        "from jaxllm import trees",
        "from . import attention",
        "from .attention import ATTENTION",
        "from jaxllm.models import attention",
        "from ..sharding import mesh",
        "import jax",
    ],
)
def test_a_downward_import_is_not(source):
    """Nor one within the package, nor a library."""
    assert not upward_imports(source, "models/layers.py")
