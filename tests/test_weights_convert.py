"""Import, export, init_from and averages as a user runs them."""

import json

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from jaxllm import models, trees
from jaxllm.config import ConfigError
from jaxllm.models.weights import certify, load, safetensors
from jaxllm.training import average, imported, initial, setup
from tests import runs
from tests.conftest import random_params, tiny_config


def tokenizer_file():
    """Bytes of a tokenizer.json of bytes and one special token: 257 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(tokenizer_models.BPE(vocab={a: i for i, a in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["</s>"])
    return made.to_str().encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as others publish them: bfloat16, two shards, rows beyond the tokenizer's."""
    place = tmp_path_factory.mktemp("theirs") / "model"
    c = tiny_config(vocab=264, length=64, norm_eps=1e-5)
    view = load.export(random_params(models.make(c)), c, "llama", dtype="bfloat16")
    files = {
        "tokenizer.json": tokenizer_file(),
        "tokenizer_config.json": b'{"eos_token": "</s>"}',
        "generation_config.json": b'{"do_sample": false}',
    }
    safetensors.write_folder(view._replace(files=files), place, shard_bytes=40_000)
    return place


def call(*words):
    return runs.call([runs.sys.executable, "-m", "jaxllm.convert", *map(str, words)])


@pytest.fixture(scope="module")
def workdir(folder, compile_cache, tmp_path_factory):
    """What import writes."""
    place = tmp_path_factory.mktemp("ours") / "run"
    done = call(
        "import", f"--from={folder}", f"--to={place}",
        f"--config.runtime.compile_cache={compile_cache}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "llama, " in done.stdout and "certified" in done.stdout
    return place


def test_export_gives_back_every_byte(workdir, folder, tmp_path):
    done = call("export", f"--from={workdir}", f"--to={tmp_path / 'out'}", "--shard_gb=3e-5")
    assert done.returncode == 0, done.stderr
    theirs, ours = (safetensors.open_folder(path) for path in (folder, tmp_path / "out"))
    assert theirs.config == ours.config and theirs.files == ours.files
    assert theirs.tensors.keys() == ours.tensors.keys()
    assert certify.fingerprint(theirs) == certify.fingerprint(ours)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2


def test_sample_and_evaluate_open_it(workdir):
    sampled = runs.call(runs.command(workdir, {}, "--tokens=4", "--prompt=abc", module="sample"))
    assert sampled.returncode == 0 and sampled.stdout.startswith("abc"), sampled.stderr
    fields = {"data.sources.main.kind": "synthetic", "data.length": 16}
    found = runs.call(runs.command(workdir, fields, module="evaluate"))
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["loss"] > 4


def test_the_parameters_are_those_of_the_file_on_any_mesh(workdir, folder):
    view = safetensors.open_folder(folder)
    one = imported.open_run(workdir, [("mesh.data", "1"), ("mesh.tensor", "8")])
    many = imported.open_run(
        workdir, [("mesh.data", "1"), ("mesh.fsdp", "4"), ("mesh.tensor", "2")]
    )
    for path, array in trees.flatten(one.params).items():
        assert np.array_equal(array, trees.flatten(many.params)[path])
    run, params = imported.read(many.run.config, view, many.run.tokenizer)
    for path, array in trees.flatten(params).items():
        assert array.sharding == trees.flatten(run.abstract.params)[path].sharding
        assert np.array_equal(array, trees.flatten(many.params)[path])
    assert any(not array.is_fully_replicated for array in jax.tree.leaves(params))


def test_each_device_reads_its_own_slices_alone(folder):
    view, read = safetensors.open_folder(folder), []

    def counting(tensor):
        def count(index):
            found = tensor.read(index)
            read.append(found.size)
            return found

        return tensor._replace(read=count)

    c = tiny_config(vocab=264, length=64, norm_eps=1e-5)
    infos = models.abstract_params(c)
    mesh = runs.mesh(fsdp=4, tensor=2)
    rules = setup.sharding.RULES["zero3"].params
    places = setup.sharding.param_shardings(infos, rules, mesh)
    counted = view._replace(tensors={n: counting(t) for n, t in view.tensors.items()})
    load.load(counted, c, "llama", places)
    stored = sum(int(np.prod(t.shape)) for t in view.tensors.values())
    assert sum(read) == stored


def smoke(workdir, compile_cache, **fields):
    """The config of a tiny run that starts from a work directory."""
    c = imported.load_config(workdir).model
    model = {f"model.{name}": c[name] for name in ("family", "layers", "width", "heads")}
    model |= {f"model.{n}": c[n] for n in ("kv_heads", "mlp_width", "positions", "vocab")}
    model |= {"model.norm_eps": c.norm_eps, "tokenizer.kind": "saved", "model.unroll": 0}
    fields = {"runtime.compile_cache": compile_cache, "init_from": str(workdir), **model, **fields}
    if fields["tokenizer.kind"] == "saved":
        fields["tokenizer.path"] = str(workdir)
    return runs.config(fields)


def test_a_new_run_starts_from_it(workdir, compile_cache, tmp_path):
    config = smoke(workdir, compile_cache, steps=2)
    assert runs.train(config, tmp_path / "run") == 0
    first = trees.flatten(imported.open_run(tmp_path / "run", step="0").params)
    start = trees.flatten(imported.open_run(workdir).params)
    trained = trees.flatten(imported.open_run(tmp_path / "run").params)
    assert any(not np.array_equal(a, trained[path]) for path, a in start.items())
    near = max(float(np.abs(a - trained[path]).max()) for path, a in start.items())
    assert near < 0.1  # two small steps away, and not drawn anew
    assert all(np.array_equal(first[path], a) for path, a in start.items())


@pytest.mark.parametrize("field, value, says", [
    ("model.rope_base", 5e5, "rope_base"),
    ("model.layers", 3, "layers"),
    ("tokenizer.kind", "byte", "other text"),
    ("init_from", "/nowhere", "no config.json there"),
])  # fmt: skip
def test_another_model_or_tokenizer_is_told_in_two_columns(
    field, value, says, workdir, compile_cache, tmp_path
):
    config = smoke(workdir, compile_cache, **{field: value})
    run = setup.assemble(config, tmp_path / "run", jax.devices()[:1])
    with pytest.raises(ConfigError, match=says) as error:
        initial.check(run)
    if field.startswith("model"):
        name = field.removeprefix("model.")
        assert "this run" in str(error.value)
        wanted = str(imported.load_config(workdir).model[name])
        assert runs.edits(str(error.value)) == [(field, wanted)]


def test_an_average_of_a_model_and_its_negative_is_nothing(workdir, tmp_path):
    trained = imported.open_run(workdir)
    minus = jax.tree.map(lambda x: -x, trained.params)
    (tmp_path / "minus").mkdir()
    imported.save(tmp_path / "minus", trained.run, minus, trained.run.tokenizer, {})
    trained.run.tokenizer.save(tmp_path / "minus" / "tokenizer")
    parts = [(str(workdir), "latest"), (str(tmp_path / "minus"), "latest")]
    found = average.soup(parts)
    assert all(float(np.abs(x).max()) < 1e-6 for x in jax.tree.leaves(found.params))
    three = average.soup([*parts, parts[0]])
    for a, b in zip(*map(jax.tree.leaves, (three.params, trained.params)), strict=True):
        assert np.allclose(a, b / 3, atol=1e-6)
    (tmp_path / "soup").mkdir()
    average.write(tmp_path / "soup", three)
    again = imported.open_run(tmp_path / "soup").params
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(three.params)))


def test_a_greedy_average_leaves_out_what_makes_it_worse(workdir, tmp_path):
    data = [("data.sources.main.kind", "synthetic"), ("data.length", "16")]
    trained = imported.open_run(workdir, data)
    noise = jax.tree.map(lambda x: x * 3 + 1, trained.params)
    (tmp_path / "bad").mkdir()
    imported.save(tmp_path / "bad", trained.run, noise, trained.run.tokenizer, {})
    trained.run.tokenizer.save(tmp_path / "bad" / "tokenizer")
    parts = [(str(tmp_path / "bad"), "latest"), (str(workdir), "latest")]
    found = average.soup(parts, data, greedy=True)
    assert found.kept == [parts[1]] and "left out" in found.lines[1]
    assert all(map(np.array_equal, jax.tree.leaves(found.params), jax.tree.leaves(trained.params)))
    found = average.soup([parts[1], parts[1]], data, greedy=True)
    assert len(found.kept) == 2  # an equal makes it no worse


def test_a_wrong_command_says_what_to_type(tmp_path):
    done = call("improt", f"--from={tmp_path}", "--to=x")
    assert done.returncode == 2 and "Did you mean 'import'" in done.stderr
    done = call("import", f"--from={tmp_path / 'model.bin'}", f"--to={tmp_path / 'x'}")
    assert done.returncode == 2 and "weights_only=True" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match="neither a folder"):
        imported.open_view(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"no config\.json there"):
        imported.open_run(tmp_path)
    with pytest.raises(ConfigError, match="at least two"):
        average.soup([(str(tmp_path), "latest")])


def test_a_folder_without_a_tokenizer_is_told(folder):
    view = safetensors.open_folder(folder)._replace(files={})
    with pytest.raises(ConfigError, match="--tokenizer=byte"):
        imported.tokenizer_of(view)
    assert imported.tokenizer_of(view, "byte").kind == "byte"


def test_a_directory_with_a_run_is_left_alone(workdir):
    with pytest.raises(ConfigError, match="holds"):
        imported.refuse_used(workdir)


def test_a_failed_certificate_stops_the_import_and_removes_nothing(folder, workdir, tmp_path):
    """A reference that was changed by hand stands for a model that is computed wrongly."""
    record = json.loads((workdir / "certificate.json").read_text())
    record["status"] = "certified"
    record["logits"][0][3][5] += 1.0
    wrong = tmp_path / "certificate.json"
    wrong.write_text(json.dumps(record))
    words = ["import", f"--from={folder}", f"--to={tmp_path / 'new'}", f"--reference={wrong}"]
    done = call(*words)
    assert done.returncode == 2 and "--allow_uncertified" in done.stderr
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["certificate.json"]
    assert json.loads((tmp_path / "new" / "certificate.json").read_text())["status"] == "failed"
    done = call(*words, "--allow_uncertified")
    assert done.returncode == 0 and (tmp_path / "new" / "checkpoints").is_dir()
