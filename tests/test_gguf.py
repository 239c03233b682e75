"""GGUF files in and out: equal values, equal logits in transformers, the same text as ids."""

import json

import ml_dtypes
import numpy as np
import pytest

from jaxllm.models.weights.gguf import open_gguf, write_gguf
from jaxllm.models.weights.gguf_values import Rows, tensor
from jaxllm.models.weights.tensors import WeightsError
from tests.gguf_helpers import (
    byte_level,
    entry,
    file,
    folder_view,
    key,
    llama_view,
    text,
    whole,
)

gguf = pytest.importorskip("gguf")

SMALL = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    vocab_size=96,
    max_position_embeddings=64,
)
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
LONG = dict(rope_type="longrope", rope_theta=10_000.0, short_factor=[1.0, 1.5, 2.0, 2.5])
# transformers' reader of GGUF files takes Gemma 2's own width for what scales the queries.
WIDE = dict(head_dim=256, num_attention_heads=2, num_key_value_heads=1, query_pre_attn_scalar=256)
FAMILIES = {  # name: (transformers' config class, fields)
    "llama": ("LlamaConfig", SMALL),
    "llama biased": ("LlamaConfig", SMALL | dict(attention_bias=True, mlp_bias=True)),
    "llama tied": ("LlamaConfig", SMALL | dict(tie_word_embeddings=True)),
    "llama 3": ("LlamaConfig", SMALL | dict(rope_parameters=LLAMA3)),
    "mistral": ("MistralConfig", SMALL | dict(head_dim=16, sliding_window=5)),
    "mixtral": ("MixtralConfig", SMALL | dict(num_local_experts=3, sliding_window=None)),
    "qwen2": ("Qwen2Config", SMALL),
    "qwen3": ("Qwen3Config", SMALL | dict(head_dim=12)),
    "gemma": ("GemmaConfig", SMALL | dict(head_dim=16)),
    "gemma2": ("Gemma2Config", SMALL | WIDE),
    "gemma3": (
        "Gemma3TextConfig",
        SMALL | dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=6, num_hidden_layers=7),
    ),
    "phi": ("PhiConfig", SMALL | dict(num_key_value_heads=4, partial_rotary_factor=0.5)),
    "phi3": ("Phi3Config", SMALL | dict(pad_token_id=0, sliding_window=7)),
    "phi3 long": (
        "Phi3Config",
        SMALL
        | dict(pad_token_id=0, original_max_position_embeddings=32)
        | dict(rope_parameters=LONG | dict(long_factor=[4.0, 4.5, 5.0, 5.5])),
    ),
    "gpt2": ("GPT2Config", dict(n_embd=32, n_layer=2, n_head=4, vocab_size=96, n_positions=64)),
    "olmo2": ("Olmo2Config", SMALL),
}
READABLE = ("llama", "llama tied", "qwen2", "gemma2")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(kind) -> (folder, model of random weights, config), made once each."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    made = {}

    def make(name):
        if name not in made:
            kind, fields = FAMILIES[name]
            torch.manual_seed(0)
            config = getattr(transformers, kind)(**fields)
            model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
            with torch.no_grad():  # norms and biases would be ones and zeros otherwise
                for weight in model.parameters():
                    if weight.dim() == 1:
                        weight += torch.randint(-32, 32, weight.shape) / 64
            folder = tmp_path_factory.mktemp("model")
            model.save_pretrained(folder)
            made[name] = (folder, model)
        return made[name]

    return make


@pytest.mark.parametrize("name", FAMILIES)
def test_export_and_import_give_the_same_model(name, models, tmp_path):
    """Tensors bit by bit; and a config from which transformers makes the same logits."""
    import torch
    import transformers

    folder, model = models(name)
    before = folder_view(folder)
    write_gguf(before, tmp_path / "a.gguf", quantize="f32", tokenizer=False)
    after = open_gguf(tmp_path / "a.gguf")
    assert after.tensors.keys() == before.tensors.keys()
    for path, found in after.tensors.items():
        wanted = whole(before.tensors[path])
        assert found.shape == wanted.shape and found.dtype == np.float32
        np.testing.assert_array_equal(whole(found), wanted, err_msg=path)

    (tmp_path / "config.json").write_text(json.dumps(after.config))
    again = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(tmp_path)
    )
    again.load_state_dict(model.state_dict())
    tokens = torch.arange(2 * 20).reshape(2, 20) % 96
    with torch.no_grad():
        wanted, found = model(tokens).logits, again.float().eval()(tokens).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", READABLE)
def test_transformers_reads_what_is_written(name, models, tmp_path):
    """Its own reader of GGUF files gives the model's logits."""
    import torch
    import transformers

    pytest.importorskip("accelerate")
    folder, model = models(name)
    write_gguf(folder_view(folder), tmp_path / "a.gguf", quantize="f32", tokenizer=False)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="a.gguf", dtype=torch.float32
    )
    tokens = torch.arange(2 * 20).reshape(2, 20) % 96
    with torch.no_grad():
        wanted, found = model(tokens).logits, again.eval()(tokens).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "phi3", "gpt2", "llama biased", "llama 3"])
def test_transformers_finds_the_same_tensors(name, models, tmp_path):
    """Where its reader leaves parts of the config out: the tensors alone."""
    pytest.importorskip("accelerate")
    utils = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    folder, model = models(name)
    write_gguf(folder_view(folder), tmp_path / "a.gguf", quantize="f32", tokenizer=False)
    found = utils.load_gguf_checkpoint(tmp_path / "a.gguf", True, model)["tensors"]
    state = model.state_dict()
    assert len(found) >= len(folder_view(folder).tensors)
    for path, values in found.items():
        np.testing.assert_array_equal(values.numpy(), state[path].numpy(), err_msg=path)


@pytest.mark.parametrize("quantize", ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
def test_the_packages_reader_finds_the_same_values(quantize, tmp_path):
    path = tmp_path / "a.gguf"
    kinds = write_gguf(llama_view(), path, quantize=quantize, tokenizer=False)
    ours = open_gguf(path)
    theirs = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert {n: t.tensor_type.name for n, t in theirs.items()} == kinds
    assert kinds["blk.0.ffn_gate.weight"] == quantize.upper()
    for path, name in {
        "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }.items():
        wanted = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type)
        np.testing.assert_array_equal(whole(ours.tensors[path]).astype(np.float32), wanted)


@pytest.mark.parametrize("dtype,quantize", [(ml_dtypes.bfloat16, "bf16"), (np.float16, "f16")])
def test_half_precision_is_exact(dtype, quantize, tmp_path):
    before = llama_view(dtype=dtype)
    write_gguf(before, tmp_path / "a.gguf", quantize=quantize, tokenizer=False)
    after = open_gguf(tmp_path / "a.gguf")
    for name, found in after.tensors.items():
        assert found.dtype == (dtype if len(found.shape) > 1 else np.float32)
        np.testing.assert_array_equal(
            whole(found).astype(np.float32), whole(before.tensors[name]).astype(np.float32)
        )


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K"])
def test_any_slice_is_that_of_the_whole(kind, tmp_path):
    check_slices(kind)


@pytest.mark.parametrize("kind", ["Q5_K", "Q6_K", "F16"])
def test_any_slice_of_the_other_kinds_too(kind):
    check_slices(kind)


def check_slices(kind):
    """Rows and columns of (7, 512) and (3, 5, 512), forwards, permuted and transposed."""
    from jaxllm.models.weights.gguf_header import TYPES, Entry

    _, values, size = next(t for t in TYPES.values() if t[0] == kind)
    random, row = np.random.default_rng(0), 512 // values * size
    # Scales are float16 within the blocks: keep exponents from making infinities of them.
    data = random.integers(0, 60, 15 * row).astype(np.uint8)
    rows = Rows(data, Entry("t", (15, 512), kind, 0, row, 15 * row))
    number = gguf.GGMLQuantizationType[kind]
    wanted = gguf.quants.dequantize(data.reshape(15, row), number).astype(np.float32)
    order = np.array([3, 1, 0, 2, 6, 5, 4])
    for index in [(slice(0, 7), slice(0, 512)), (slice(2, 5), slice(3, 500)), (slice(6, 7),) * 2]:
        for made, full in [
            (tensor(rows, (7, 512)), wanted[:7]),
            (tensor(rows, (7, 512), first=4), wanted[4:11]),
            (tensor(rows, (7, 512), order=lambda n: order[n]), wanted[:7][order]),
            (tensor(rows, (7, 512), plus=-1.0), wanted[:7] - np.float32(1)),
        ]:
            np.testing.assert_array_equal(made.read(index).astype(np.float32), full[index])
        turned = tensor(rows, (512, 7), transposed=True).read(index[::-1]).astype(np.float32)
        np.testing.assert_array_equal(turned, wanted[:7].T[index[::-1]])
    stacked = tensor(rows, (3, 5, 512))
    index = (slice(1, 3), slice(2, 4), slice(8, 9))
    found = stacked.read(index).astype(np.float32)
    np.testing.assert_array_equal(found, wanted.reshape(3, 5, 512)[index])


def test_reading_some_rows_dequantizes_no_others(tmp_path, monkeypatch):
    path = tmp_path / "a.gguf"
    write_gguf(llama_view(), path, quantize="q8_0", tokenizer=False)
    table = open_gguf(path).tensors["model.embed_tokens.weight"]
    seen, real = [], gguf.quants.dequantize
    monkeypatch.setattr(
        gguf.quants, "dequantize", lambda x, k: (seen.append(len(x)), real(x, k))[1]
    )
    table.read((slice(7, 10), slice(0, 64)))
    assert sum(seen) == 3


def test_values_beyond_float16_are_refused_and_nothing_is_left(tmp_path):
    view = llama_view()
    view.tensors["model.embed_tokens.weight"].read((slice(0, 1), slice(0, 1)))[:] = 1e6
    with pytest.raises(WeightsError, match=r"(?s)'token_embd.weight' holds 1e\+06.*bf16"):
        write_gguf(view, tmp_path / "a.gguf", tokenizer=False)
    assert not list(tmp_path.iterdir())


def model_file(path, *keys, more=()):
    """A file whose header is sound, with the given keys and an embedding table."""
    tables = [entry("token_embd.weight", (4, 8)), *more]
    path.write_bytes(file(list(keys), tables, bytes(32 * 4 * (1 + len(more)))))


def u32(name, value):
    return key(name, 4, value.to_bytes(4, "little"))


ARCHITECTURE = key("general.architecture", 8, text("llama"))
SIZES = [
    u32(f"llama.{name}", 1) for name in ("block_count", "context_length", "feed_forward_length")
] + [u32("llama.embedding_length", 4), u32("llama.attention.head_count", 2)]
EPS = key("llama.attention.layer_norm_rms_epsilon", 6, np.float32(1e-5).tobytes())
WRONG = {
    "architecture": ([key("general.architecture", 8, text("llamas"))], "Did you mean 'llama'"),
    "no architecture": ([], "general.architecture=None"),
    "no layers": ([ARCHITECTURE], "llama.block_count=None"),
    "no eps": ([ARCHITECTURE, *SIZES], "has no key llama.attention.layer_norm_rms_epsilon"),
    "layers as text": (
        [ARCHITECTURE, key("llama.block_count", 8, text("3")), *SIZES[1:]],
        "llama.block_count='3'",
    ),
    "many layers": (
        [ARCHITECTURE, u32("llama.block_count", 1 << 30), *SIZES[1:], EPS],
        "block_count=1,073,741,824",
    ),
    "a split file": ([ARCHITECTURE, *SIZES, EPS, u32("split.count", 3)], "one of 3 parts"),
    "tokenizer": (
        [ARCHITECTURE, *SIZES, EPS, key("tokenizer.ggml.model", 8, text("rwkv"))],
        "tokenizer.ggml.model='rwkv'",
    ),
    "no tokens": (
        [ARCHITECTURE, *SIZES, EPS, key("tokenizer.ggml.model", 8, text("gpt2"))],
        "tokenizer.ggml.tokens",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_said(name, tmp_path):
    keys, said = WRONG[name]
    model_file(tmp_path / "a.gguf", *keys)
    with pytest.raises(WeightsError, match=said):
        open_gguf(tmp_path / "a.gguf")


def test_a_damaged_header_is_an_error_and_no_crash(tmp_path):
    """Single bytes of a whole file's header, each made something else."""
    write_gguf(llama_view(tokenizer__json=byte_level()), tmp_path / "a.gguf", quantize="q8_0")
    content = (tmp_path / "a.gguf").read_bytes()
    end = content.index(b"blk.0.ffn_down.weight") + 100
    random, refused, path = np.random.default_rng(0), 0, tmp_path / "b.gguf"
    for _ in range(300):
        damaged = bytearray(content)
        # Most bytes are the vocabulary's: half of the damage goes to the first few keys.
        place = random.integers(4, end if random.random() < 0.5 else 900)
        damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            for found in open_gguf(path).tensors.values():
                found.read(tuple(slice(0, 1) for _ in found.shape))
        except WeightsError:
            refused += 1
    assert refused > 30


def test_a_tensor_without_a_place_is_named(tmp_path):
    more = [entry("blk.0.attn_w.weight", (8,), 0, 128)]
    model_file(tmp_path / "a.gguf", ARCHITECTURE, *SIZES, EPS, more=more)
    with pytest.raises(WeightsError, match=r"first 'blk.0.attn_w.weight'.*Did you mean 'blk.0.at"):
        open_gguf(tmp_path / "a.gguf")


def rewritten(path, change):
    """Writes a file's tensors again, after `change` of {name: array}; returns the new path."""
    reader = gguf.GGUFReader(path)
    keys = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    writer = gguf.GGUFWriter(path.with_name("b.gguf"), keys.pop("general.architecture"))
    for name, value in keys.items():
        kind = reader.fields[name].types[0]
        writer.add_key_value(name, value, kind)
    for name, values in change({t.name: np.array(t.data) for t in reader.tensors}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name("b.gguf")


def fuse(arrays):
    """Queries, keys and values as one, as the first Phi-2 files have them."""
    for i in range(2):
        for part in ("weight", "bias"):
            parts = [arrays.pop(f"blk.{i}.attn_{letter}.{part}") for letter in "qkv"]
            arrays[f"blk.{i}.attn_qkv.{part}"] = np.concatenate(parts)
    return arrays


def unstack(arrays):
    """A tensor an expert, as the first Mixtral files have them."""
    for name in [name for name in arrays if "_exps" in name]:
        for e, values in enumerate(arrays.pop(name)):
            arrays[name.replace("_exps.weight", f".{e}.weight")] = values
    return arrays


@pytest.mark.parametrize("name,change", [("phi", fuse), ("mixtral", unstack)])
def test_older_files_are_read_too(name, change, models, tmp_path):
    path = tmp_path / "a.gguf"
    before = folder_view(models(name)[0])
    write_gguf(before, path, quantize="f32", tokenizer=False)
    after = open_gguf(rewritten(path, change))
    assert after.tensors.keys() == before.tensors.keys()
    for name, found in after.tensors.items():
        np.testing.assert_array_equal(whole(found), whole(before.tensors[name]), err_msg=name)
