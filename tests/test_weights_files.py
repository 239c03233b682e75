"""Files of weights from outside: every kind of damage is told, and none is followed."""

import json
import resource

import ml_dtypes
import numpy as np
import pytest

from jaxllm import models, trees
from jaxllm.models.weights import certify, load, names, safetensors
from jaxllm.models.weights.tensors import Tensor, View, WeightsError
from tests import weights_helpers as helpers
from tests.conftest import random_params, tiny_config


def header_bytes(header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(**changes):
    return {"a": dict(dtype="F32", shape=[2], data_offsets=[0, 8]) | changes}


# {what is wrong: (bytes of the file, what the error says)}.
DAMAGED = {
    "empty": (b"", "too few"),
    "cut in the length": (b"\1\0\0", "too few"),
    "header longer than the file": (header_bytes({}, b"", 1000), "header has 1,000 bytes"),
    "header of 2 to the 63": (header_bytes({}, b"", 2**63), "at most"),
    "header of no bytes": (header_bytes(b"", b"", 0), "header has 0 bytes"),
    "not JSON": (header_bytes(b"{not json}"), "not JSON"),
    "not UTF-8": (header_bytes(b'{"\xff": 1}'), "not JSON"),
    "nested too deep": (header_bytes(b"[" * 100_000), "not JSON"),
    "a list": (header_bytes([1, 2]), "not a JSON object"),
    "a name twice": (
        header_bytes(b'{"a": {"dtype": "F32"}, "a": {"dtype": "F32"}}'),
        "names 'a' twice",
    ),
    "a key twice in a tensor": (header_bytes(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "twice"),
    "metadata is text": (header_bytes({"__metadata__": "pt"}), "__metadata__"),
    "a tensor is a number": (header_bytes({"a": 3}), "must have dtype, shape"),
    "no dtype": (header_bytes({"a": dict(shape=[2], data_offsets=[0, 8])}), "must have dtype"),
    "a field more": (header_bytes(entry(hook="os.system")), "and no more"),
    "unknown dtype": (header_bytes(entry(dtype="F33")), "Did you mean 'F32'"),
    "dtype is a list": (header_bytes(entry(dtype=["F32"])), "has dtype"),
    "negative size": (header_bytes(entry(shape=[-2])), "no list of whole numbers"),
    "size is true": (header_bytes(entry(shape=[True, 2])), "no list of whole numbers"),
    "size is a fraction": (header_bytes(entry(shape=[2.0])), "no list of whole numbers"),
    "size that overflows": (header_bytes(entry(shape=[2**61, 2**61])), "takes"),
    "size beyond 64 bits": (header_bytes(entry(shape=[2**80])), "no list of whole numbers"),
    "shape is text": (header_bytes(entry(shape="2")), "no list of whole numbers"),
    "a thousand dimensions": (header_bytes(entry(shape=[1] * 1000)), "no list of whole numbers"),
    "one offset": (header_bytes(entry(data_offsets=[0])), "not two bytes"),
    "negative offset": (header_bytes(entry(data_offsets=[-8, 0])), "not two bytes"),
    "offsets the wrong way": (header_bytes(entry(data_offsets=[8, 0])), "takes 8 bytes"),
    "shape and bytes differ": (header_bytes(entry(data_offsets=[0, 4])), "takes 8 bytes"),
    "cut off": (header_bytes(entry(), b"\0" * 7), "cut off"),
    "bytes left over": (header_bytes(entry(), b"\0" * 9), "1 bytes after its last"),
    "a hole": (header_bytes(entry(data_offsets=[8, 16]), b"\0" * 16), "leaves a hole"),
    "overlap": (
        header_bytes({**entry(), "b": entry(data_offsets=[4, 12])["a"]}, b"\0" * 12),
        "overlaps",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_refused_in_little_memory(kind, tmp_path):
    content, says = DAMAGED[kind]
    (tmp_path / "model.safetensors").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WeightsError, match=says) as error:
        safetensors.open_file(tmp_path / "model.safetensors")
    assert "model.safetensors" in str(error.value) and len(str(error.value)) < 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_every_single_wrong_byte_of_a_header_is_refused_or_changes_no_size(tmp_path):
    path = tmp_path / "model.safetensors"
    good = header_bytes(entry(), np.arange(2, dtype=np.float32).tobytes())
    rng = np.random.default_rng(0)
    for at in range(len(good) - 8):
        for value in rng.choice(256, 4, replace=False):
            path.write_bytes(good[:at] + bytes([value]) + good[at + 1 :])
            try:
                tensors = safetensors.open_file(path)
            except WeightsError:
                continue
            for tensor in tensors.values():
                assert tensor.read((slice(None),) * len(tensor.shape)).nbytes == 8


@pytest.fixture
def folder(tmp_path):
    """A folder of two shards."""
    tensors = {name: _tensor(np.float32([i, i + 1])) for i, name in enumerate("abc")}
    view = View({"model_type": "llama"}, tensors, {"tokenizer.json": b"{}"}, "")
    safetensors.write_folder(view, tmp_path / "folder", shard_bytes=16)
    return tmp_path / "folder"


def _tensor(array):
    return Tensor(array.shape, array.dtype, lambda index: array[index])


def _index(folder, **changes):
    path = folder / safetensors.INDEX
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


FIRST = "model-00001-of-00002.safetensors"
FOLDERS = {
    "a shard is missing": (lambda f: (f / FIRST).unlink(), "which is missing"),
    "a name in the index alone": (lambda f: _index(f, d=FIRST), "'d' is in"),
    "a name in another shard": (lambda f: _index(f, c=FIRST), "'c' is in"),
    "a path out of the folder": (lambda f: _index(f, a=f"../folder/{FIRST}"), "no name of a file"),
    "an absolute path": (lambda f: _index(f, a=str(f / FIRST)), "no name of a file"),
    "a shard that is a pickle": (lambda f: _index(f, a="pytorch_model.bin"), "weights_only=True"),
    "a shard that is a number": (lambda f: _index(f, a=3), "no name of a file"),
    "an index of nothing": (lambda f: (f / safetensors.INDEX).write_text("{}"), "no weight_map"),
    "an index that is no JSON": (lambda f: (f / safetensors.INDEX).write_text("{"), "not JSON"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), "a list"),
    "a config nested too deep": (
        lambda f: (f / "config.json").write_text("[" * 100_000), "not JSON"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_damaged_folder_is_refused(kind, folder):
    break_it, says = FOLDERS[kind]
    break_it(folder)
    with pytest.raises(WeightsError, match=says):
        safetensors.open_folder(folder)


def test_an_index_that_forgets_a_tensor_is_refused(folder):
    path = folder / safetensors.INDEX
    index = json.loads(path.read_text())
    del index["weight_map"]["b"]
    path.write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="holds 'b'"):
        safetensors.open_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_a_pickle_is_refused_with_the_line_that_converts_it(name, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(WeightsError, match="weights_only=True") as error:
        safetensors.open_folder(tmp_path)
    assert name in str(error.value)


def test_what_is_written_is_read_again_bit_by_bit(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}/{i}": rng.integers(0, 2, shape).astype(dtype)
        for name, dtype in safetensors.DTYPES.items()
        for i, shape in enumerate([(), (3,), (2, 5), (0, 4), (1, 2, 3)])
    }
    arrays["odd"] = rng.normal(size=(7, 5)).astype(ml_dtypes.bfloat16)
    tensors = {name: _tensor(array) for name, array in arrays.items()}
    safetensors.write_folder(View({}, tensors, {}, ""), tmp_path / "x", shard_bytes=100)
    assert len(list((tmp_path / "x").glob("*.safetensors"))) > 3
    found = safetensors.open_folder(tmp_path / "x").tensors
    for name, array in arrays.items():
        whole = found[name].read((slice(None),) * array.ndim)
        assert (whole.dtype, whole.shape) == (array.dtype, array.shape), name
        assert whole.tobytes() == array.tobytes()
    part = found["odd"].read((slice(2, 5), slice(1, 4)))
    assert part.tobytes() == arrays["odd"][2:5, 1:4].tobytes()


def test_the_format_is_that_of_its_own_library(tmp_path):
    theirs = pytest.importorskip("safetensors.numpy")
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float16([1, 2])}
    safetensors.write_file({n: _tensor(a) for n, a in arrays.items()}, tmp_path / "ours")
    for name, array in theirs.load_file(tmp_path / "ours").items():
        assert np.array_equal(array, arrays[name]) and array.dtype == arrays[name].dtype
    theirs.save_file(arrays, tmp_path / "theirs")
    found = safetensors.open_file(tmp_path / "theirs")
    assert np.array_equal(found["a"].read((slice(1, 2), slice(None))), arrays["a"][1:2])


def test_weights_are_never_written_over(folder):
    with pytest.raises(WeightsError, match="already"):
        safetensors.write_folder(View({}, {}, {}, ""), folder)


@pytest.fixture(scope="module")
def model():
    """(View, ModelConfig, params) of a tiny model."""
    c = tiny_config(vocab=40, length=32, norm_eps=1e-5)
    params = random_params(models.make(c))
    return load.export(params, c, "llama"), c, params


def _changed(view, name, array):
    return view._replace(tensors={**view.tensors, name: _tensor(array)})


def _without(view, name):
    return view._replace(tensors={n: t for n, t in view.tensors.items() if n != name})


K = "model.layers.1.self_attn.k_proj.weight"


def _with_nan(view, value):
    array = view.tensors[K].read((slice(None),) * 2).copy()
    array[3, 5] = value
    return _changed(view, K, array)


VIEWS = {
    "missing": (lambda v: _without(v, K), f"{K}: missing"),
    "left over": (lambda v: _changed(v, K + "x", np.zeros((2, 2), np.float32)), "left over"),
    "renamed": (
        lambda v: _changed(_without(v, K), K.replace("k_", "kk_"), np.zeros((16, 32), np.float32)),
        "Did you mean 'model.layers.1.self_attn.kk_proj.weight'",
    ),
    "turned": (lambda v: _changed(v, K, np.zeros((32, 16), np.float32)), "shape"),
    "whole numbers": (lambda v: _changed(v, K, np.zeros((16, 32), np.int32)), "int32; weights"),
    "nan": (lambda v: _with_nan(v, np.nan), f"{K} holds 1 values"),
    "infinite": (lambda v: _with_nan(v, -np.inf), f"{K} holds 1 values"),
    "no model_type": (lambda v: v._replace(config={}), "model_type"),
    "unknown field": (lambda v: v._replace(config={**v.config, "mla_rank": 4}), "mla_rank"),
    "known with another value": (
        lambda v: v._replace(config={**v.config, "rope_interleaved": True}), "rope_interleaved"
    ),
    "unknown stretch": (
        lambda v: v._replace(config={**v.config, "rope_parameters": dict(rope_type="dynamic")}),
        "dynamic",
    ),
    "one more layer": (
        lambda v: v._replace(config={**v.config, "num_hidden_layers": 3}), "layers.2"
    ),
    "another vocabulary": (
        lambda v: v._replace(config={**v.config, "vocab_size": 41}), "embed_tok"
    ),
    "heads that do not divide": (
        lambda v: v._replace(config={**v.config, "num_key_value_heads": 3}), "kv_heads"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", VIEWS)
def test_weights_that_are_not_those_of_the_config_are_refused(kind, model):
    change, says = VIEWS[kind]
    with pytest.raises(load.ConfigError, match=says):
        helpers.open_ours(change(model[0]))


def test_a_vocabulary_may_be_padded_but_not_cut(model):
    assert load.read_config(model[0], vocab=39)["vocab"] == 40
    with pytest.raises(WeightsError, match="40 rows of embeddings and its tokenizer 41"):
        load.read_config(model[0], vocab=41)


def test_the_head_of_a_tied_model_must_be_its_embeddings():
    c = tiny_config(vocab=40, length=32, tied=True, norm_eps=1e-5)
    view = load.export(random_params(models.make(c)), c, "llama")
    table = view.tensors["model.embed_tokens.weight"].read((slice(None),) * 2)
    helpers.open_ours(_changed(view, "lm_head.weight", table))
    with pytest.raises(WeightsError, match="differs from"):
        helpers.open_ours(_changed(view, "lm_head.weight", table * 2))
    with pytest.raises(WeightsError, match="shape"):
        helpers.open_ours(_changed(view, "lm_head.weight", table[1:]))


def test_names_without_their_prefix_are_understood(model):
    view, _, params = model
    bare = {name.removeprefix("model."): t for name, t in view.tensors.items()}
    found = trees.flatten(helpers.open_ours(view._replace(tensors=bare))[2])
    for path, array in trees.flatten(params).items():
        assert np.array_equal(found[path], array)


@pytest.mark.parametrize("family, fields", [
    ("llama", dict()),
    ("phi3", dict()),
    ("gpt2", dict(norm="layer", norm_bias=True, position="learned", qkv_bias=True, mlp_bias=True,
                  out_bias=True, activation="gelu_tanh", gated=False, tied=True, kv_heads=4)),
    ("mixtral", dict(experts=4)),
])  # fmt: skip
def test_any_slice_of_a_parameter_is_that_slice_of_the_whole(family, fields):
    c = tiny_config(norm_eps=1e-5, **fields)
    params = trees.flatten(random_params(models.make(c)))
    map_ = load.fill_map(family, c)
    tensors = names.export(map_, params, lambda name: "float32")
    rng = np.random.default_rng(0)
    for path, array in params.items():
        for _ in range(8):
            ends = [np.sort(rng.choice(n + 1, 2, replace=False)) for n in array.shape]
            index = tuple(slice(int(a), int(b)) for a, b in ends)
            found = names.read_slice(map_, tensors, path, index, array.shape)
            assert np.array_equal(found, array[index]), (path, index)


def test_a_certificate_fails_for_another_model_and_its_record_proves_only_its_own(model, tmp_path):
    view, c, params = model
    mine = models.make(c)
    tokens = certify.fixed_tokens(c)
    logits = certify.our_outputs(mine, params, tokens)
    assert certify.compare(logits, logits)["status"] == "certified"
    assert certify.compare(logits * 1.001, logits)["status"] == "failed"
    assert certify.compare(logits * np.nan, logits)["status"] == "failed"
    record = {
        "status": "certified", "weights": certify.fingerprint(view), "tokens": tokens.tolist(),
        "logits": logits[:, :, : certify.KEPT_COLUMNS].tolist(),
    }  # fmt: skip
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(record))
    assert certify.certify(view, mine, params, str(path))["status"] == "certified"
    other = {**params, "final_norm": {"scale": params["final_norm"]["scale"] * 1.01}}
    assert certify.certify(view, mine, other, str(path))["status"] == "failed"
    with pytest.raises(WeightsError, match="other weights"):
        certify.certify(load.export(other, c, "llama"), mine, other, str(path))
