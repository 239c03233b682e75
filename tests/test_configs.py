"""Every file in configs/ runs with :smoke, and stays short."""

import pytest

from jaxllm import host, models
from tests import runs

FOLDER = runs.ROOT / "configs"
FILES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base"))
# Needs a model with a head.
FILES = [name for name in FILES if name != "classify" or "task" in models.Model._fields]
# Arguments of a config that change what it is made of.
ARGUMENTS = {
    "shakespeare_char": ["", "nanogpt_cpu", "nanogpt_gpu"],
    "pretrain": ["", "family=gemma3,size=1b"],
    "encoder": ["", "objective=xlnet", "objective=infill", "objective=prefix", "objective=spans"],
}
LAST = [(name, ARGUMENTS.get(name, [""])[-1]) for name in FILES] + [("shakespeare_char", "")]
CASES = [(name, argument) for name in FILES for argument in ARGUMENTS.get(name, [""])]


@pytest.mark.parametrize("name, argument", LAST)
def test_every_config_runs_with_smoke(name, argument, compile_cache, tmp_path):
    arg = ",".join(filter(None, [argument, "smoke"]))
    config = runs.settings.load(
        f"configs/{name}.py:{arg}", [("runtime.compile_cache", compile_cache)], runs.setup.KINDS
    )[0]
    assert runs.train(config, tmp_path) == 0
    summary = runs.summary(tmp_path)
    assert summary["status"] == "done" and summary["step"] == config.steps <= 5
    least, most = (0, 3) if config.objective.kind != "lm" else (3, 7)
    assert least < summary["final"]["validation/loss"] < most
    assert bool(list(tmp_path.glob("samples/*.txt"))) == bool(config.sample.tokens)


@pytest.mark.parametrize("name, argument", CASES)
def test_the_full_size_of_every_config_is_a_good_one(name, argument, tmp_path):
    """Checked whole but for the files that the user names."""
    paths = []
    if name not in ("shakespeare_char", "base"):
        text = tmp_path / "text.jsonl"
        text.write_text('{"text": "a"}\n')
        source = "task0" if name == "continual" else "main"
        paths = [(f"data.sources.{source}.path", str(text))]
    if name in ("text", "pretrain", "encoder"):
        paths.append(("data.sources.main.kind", "jsonl"))
    config, _ = runs.settings.load(f"configs/{name}.py:{argument}", paths, runs.setup.KINDS)
    runs.setup.check(config, host.useful_devices(config))


@pytest.mark.parametrize("name", [*FILES, "base"])
def test_a_config_is_short(name):
    lines = len((FOLDER / f"{name}.py").read_text().splitlines())
    assert lines <= (140 if name == "base" else 45)
