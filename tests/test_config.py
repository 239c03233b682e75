"""A wrong setting stops before any device work, and what the error says to type works."""

import jax
import pytest

from jaxllm import settings
from jaxllm.config import ConfigError, parse_arg
from jaxllm.training import setup
from tests import runs

DEVICES = 8


def read(*items, file=runs.FILE):
    """(config, notes) of settings such as "model.layers=3", checked for eight devices."""
    pairs = [tuple(item.split("=", 1)) for item in items]
    config, notes = settings.load(file, pairs, setup.KINDS)
    setup.check(config, DEVICES)
    return config, notes


TYPOS = [
    "model.layer=3", "data.batchs=16", "data.sources.main.documnts=40", "optim.weight_decai=0.2",
    "schedule.warmup=1", "validate.evry=2", "runtime.grace=9", "step=3", "log.evry=3",
]  # fmt: skip
TYPES = [
    "model.layers=abc", "model.layers=2.5", "model.layers=", "model.gated=yes", "model.window=x",
    "model.tied=2", "steps=1.5", "steps=1e999", "schedule.lr=fast", "seed=zero", "step.clip=none",
    "optim.nesterov=maybe", "mesh.data=all", "data.validation_fraction=tenth",
]  # fmt: skip
CHOICES = [
    "optim.kind=adamm", "schedule.kind=cosin", "data.sources.main.kind=textt", "objective.kind=lmm",
    "tokenizer.kind=bytes", "model.family=lama", "model.size=7bb", "sharding=zero2",
    "model.norm=rmss", "model.attention=flashy", "model.dtype=float8", "model.remat=all",
    "model.activation=silly", "model.position=alibi", "model.rope_scaling=weird",
    "data.bad_input=maybe", "data.sources.main.split=half",
]  # fmt: skip
RANGES = [
    "steps=0", "data.batch=0", "data.batch=-8", "data.length=0", "data.prefetch=0",
    "step.micro_batches=0", "step.clip=-1", "step.clip=nan", "step.ema=1", "step.skip_limit=0",
    "validate.every=-1", "validate.batch=0", "validate.patience=-1", "checkpoint.keep_last=0",
    "checkpoint.every=-1", "log.every=0", "sample.top_p=0", "sample.temperature=-1",
    "profile.steps=-1", "runtime.grace_s=1", "runtime.cpu_devices=-1", "model.layers=0",
    "model.heads=0", "model.vocab=-3", "model.window=-1", "model.dropout=1.5",
    "model.rope_fraction=2.0", "schedule.lr=-1", "schedule.lr=nan", "schedule.warmup_steps=100",
    "optim.momentum=1.0", "objective.z_loss=-1", "objective.chunk=-1",
    "data.validation_fraction=1.5", "data.sources.main.weight=-1",
    "data.sources.main.documents=0", "model.experts=-1", "model.capacity=-1",
    "model.pipeline_rounds=0", "model.window_first=-1", "model.balance_loss=-1",
]  # fmt: skip
COMBINATIONS = [
    "data.batch=7", "data.batch=12", "validate.batch=7", "step.micro_batches=3",
    "step.micro_batches=2", "mesh.data=3", "mesh.fsdp=3", "mesh.fsdp=-1", "mesh.tensor=8",
    "model.heads=5", "model.kv_heads=3", "model.positions=16", "data.length=64 model.positions=32",
    "model.norm_bias=true", "model.head_width=7", "mesh.tensor=3 mesh.fsdp=5",
    "model.mlp_width=33 mesh.tensor=2", "mesh.seq=3", "mesh.expert=2", "mesh.stage=8",
    "model.experts=4 model.experts_per_token=5", "model.window_first=2", "mesh.slice=3",
    "model.attention=lsh model.kv_heads=2", "model.attention=xla mesh.seq=2",
    "model.experts=2 model.moe_every=3", "model.attention=cudnn", "data.length=24 mesh.seq=8",
    "model.pipeline_pieces=3 mesh.stage=2",
    "mesh.tensor=8 model.width=48 model.kv_heads=3 model.heads=24",
]  # fmt: skip


@pytest.mark.parametrize("items", [*TYPOS, *TYPES, *CHOICES, *RANGES, *COMBINATIONS])
def test_a_wrong_setting_names_field_and_value_and_an_edit_that_works(items):
    always = ("optim.kind=sgd",) if "optim.kind" not in items else ()
    items = items.split(" ")
    with pytest.raises((ConfigError, ValueError)) as caught:
        read(*always, *items)
    error, text = caught.value, str(caught.value)
    assert type(error).__name__ in ("ConfigError", "DataError"), repr(error)
    names = [item.partition("=")[0].split(".")[-1] for item in items]
    assert any(name in text for name in names), text
    values = [item.partition("=")[2] for item in items]
    assert any(value in text.lower() for value in values), text
    advice = text[text.index("Try ") :]
    edits = runs.edits(advice)
    assert edits, text
    wrong = [item for item in items if item in TYPOS]  # to be typed otherwise, not besides
    kept = [*always, *(item for item in items if item not in wrong)]
    tries = [[edit] for edit in edits] if ", or " in advice else [edits]
    for edit in tries:
        good = dict(item.split("=", 1) for item in kept) | dict(edit)
        # One edit may uncover the next mistake, such as a size that fits a mesh and no heads.
        for _ in range(2):
            try:
                read(*(f"{name}={value}" for name, value in good.items()))
                break
            except ConfigError as further:
                good |= dict(runs.edits(str(further)[str(further).index("Try ") :])[:1])
        read(*(f"{name}={value}" for name, value in good.items()))


def test_no_device_is_touched_by_a_check():
    words = (
        "import sys; sys.argv = ['train', '--config=configs/shakespeare_char.py:smoke',"
        " '--workdir={}', '--config.data.batch=0']; import runpy, jax\n"
        "def no(*_): raise SystemExit(99)\n"
        "jax.devices = jax.device_count = jax.local_devices = no\n"
        "runpy.run_module('jaxllm.train', run_name='__main__')"
    )
    done = runs.call([runs.sys.executable, "-c", words.format("/nonexistent/run")])
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("ConfigError: config.data.batch=0 must be at least 1.")


def test_every_option_of_a_kind_can_be_set_without_being_in_the_file():
    config, _ = read("optim.kind=adamw", "optim.beta2=0.99", "objective.z_loss=1e-4")
    assert (config.optim.beta2, config.objective.z_loss, config.optim.eps) == (0.99, 1e-4, 1e-8)
    config, _ = read("schedule.final=0.5", "data.sources.main.words=9")
    assert config.schedule.final == 0.5 and config.data.sources.main.words == 9


def test_a_changed_kind_drops_what_it_does_not_take_and_says_so():
    config, notes = read("optim.kind=sgd", "optim.momentum=0.5")
    assert notes == ["config.optim.adam_lr=0.003 is not for kind 'sgd': dropped"]
    assert "adam_lr" not in config.optim and config.optim.momentum == 0.5
    assert config.optim.weight_decay == 0.1  # both kinds take it
    _, notes = read("optim.kind=muon")
    assert notes == []
    with pytest.raises(ConfigError, match=r"no 'adam_lr'"):
        read("optim.kind=sgd", "optim.adam_lr=0.1")


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("steps=1_000", 1000), ("steps=1e3", 1000), ("schedule.lr=3", 3.0),
        ("model.tied=true", True), ("model.tied=0", False), ("model.window=8", 8),
        ("sample.prompt=a=b, c", "a=b, c"), ("model.dropout=0.25", 0.25),
    ],
)  # fmt: skip
def test_texts_become_values_of_the_type_of_the_field(text, wanted):
    config, _ = read("optim.kind=sgd", text)
    for name in text.partition("=")[0].split("."):
        config = config[name]
    assert config == wanted and type(config) is type(wanted)


def test_arguments_of_a_command_line():
    words = ["--config=a.py:b", "--config.x.y=1", "--config.z", "-3", "--workdir", "d", "-v"]
    assert settings.split_arguments(words) == (
        "a.py:b", [("x.y", "1"), ("z", "-3")], ["--workdir", "d", "-v"],
    )  # fmt: skip
    assert settings.split_arguments(["--config", "a.py"]) == ("a.py", [], [])
    for words in (["--config"], ["--config.steps"], ["--config.steps", "--workdir=d"]):
        with pytest.raises(ConfigError, match="needs a value"):
            settings.split_arguments(words)


def test_argument_after_the_colon():
    arg = parse_arg("smoke,width=3", smoke=False, width=1, rate=0.5)
    assert (arg.smoke, arg.width, arg.rate) == (True, 3, 0.5)
    assert parse_arg(None, smoke=False).smoke is False
    with pytest.raises(ConfigError, match=r"'smok'.*Did you mean 'smoke'"):
        parse_arg("smok", smoke=False)
    with pytest.raises(ConfigError, match="takes int, got 'x'"):
        parse_arg("width=x", width=1)
    with pytest.raises(ConfigError, match="'nanogpt_cpu'"):
        read(file="configs/shakespeare_char.py:nanogptcpu")


def test_a_file_that_is_not_there_or_wrong(tmp_path):
    with pytest.raises(ConfigError, match=r"Did you mean 'configs/shakespeare_char\.py'"):
        read(file="configs/shakespear_char.py")
    with pytest.raises(ConfigError, match=r"No config given\. Try --config="):
        read(file="")
    bad = tmp_path / "bad.py"
    bad.write_text("from configs import base\ndef get_config(arg=None):\n"
                   "    c = base.get_config()\n    c.data.batsh = 3\n    return c\n")  # fmt: skip
    with pytest.raises(ConfigError, match=r"sets 'batsh', which is no setting.*'batch'"):
        read(file=str(bad))
    bad.write_text(bad.read_text().replace("c.data.batsh = 3", 'c.steps = "many"'))
    with pytest.raises(ConfigError, match="Could not override"):
        read(file=str(bad))


def test_an_edit_of_the_heads_over_the_tensor_axis():
    """Named by its own field, since the mesh may be what the user wants."""
    with pytest.raises(ConfigError, match=r"config\.model\.heads=4.*tensor=8"):
        read("mesh.tensor=8")
    assert jax.device_count() == DEVICES
