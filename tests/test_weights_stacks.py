"""Encoders and encoder-decoders: the same outputs as in transformers, the same bytes again."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models.families import FAMILIES, hf, hf_stacks, hf_write, model_config
from jaxllm.models.weights import certify, load, safetensors
from tests import weights_helpers as helpers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

BERT = dict(
    vocab_size=41, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
    intermediate_size=50, max_position_embeddings=40,
)  # fmt: skip
T5 = dict(
    vocab_size=37, d_model=20, d_kv=6, d_ff=34, num_layers=2, num_decoder_layers=3, num_heads=3,
    relative_attention_num_buckets=8, relative_attention_max_distance=14,
)  # fmt: skip
BART = dict(
    vocab_size=43, d_model=24, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=30, decoder_ffn_dim=30, max_position_embeddings=40,
)  # fmt: skip
# {model_type: [(their class, fields of its config)]}; odd sizes, every head, every activation.
CASES = {
    "bert": [
        ("BertForMaskedLM", BERT | dict(type_vocab_size=3)),
        ("BertModel", BERT | dict(hidden_act="gelu_new", hidden_size=20, num_attention_heads=5)),
        ("BertForSequenceClassification", BERT | dict(num_labels=3, hidden_act="relu")),
        ("BertForTokenClassification", BERT | dict(num_labels=5, num_hidden_layers=1)),
        ("BertForQuestionAnswering", BERT),
    ],
    "roberta": [
        ("RobertaForMaskedLM", BERT | dict(type_vocab_size=1, layer_norm_eps=1e-5)),
        ("RobertaModel", BERT | dict(intermediate_size=31, type_vocab_size=1)),
        ("RobertaForSequenceClassification", BERT | dict(num_labels=4, type_vocab_size=1)),
    ],
    "t5": [
        ("T5ForConditionalGeneration", T5),
        ("T5ForConditionalGeneration", T5 | dict(feed_forward_proj="gated-gelu", d_model=16)),
        (
            "T5ForConditionalGeneration",
            T5 | dict(tie_word_embeddings=False, feed_forward_proj="gated-silu"),
        ),
    ],
    "bart": [
        ("BartForConditionalGeneration", BART),
        ("BartForConditionalGeneration", BART | dict(scale_embedding=True, d_model=36)),
        ("BartForConditionalGeneration", BART | dict(activation_function="relu")),
    ],
}  # fmt: skip
ALL = [(kind, number) for kind, cases in CASES.items() for number in range(len(cases))]
DTYPES = ("float32", "bfloat16", "float16", "float32", "float32")


def make_theirs(kind, number):
    """Their model, with weights drawn at random and rounded to the case's dtype."""
    name, fields = CASES[kind][number]
    transformers.utils.logging.set_verbosity_error()
    cls = getattr(transformers, name)
    model = cls(cls.config_class(**fields)).eval()
    generator = torch.Generator().manual_seed(number)
    dtype = getattr(torch, DTYPES[number])
    with torch.no_grad():
        for weight in [*model.parameters(), *model.buffers()]:
            if weight.is_floating_point():
                drawn = 0.3 * torch.randn(weight.shape, generator=generator)
                weight.copy_((drawn + (weight.ndim == 1) * 0.7).to(dtype))
    return model


def outputs(c, params, tokens):
    """Ours, jitted."""
    return certify.our_outputs(models.make(models.for_platform(c, "cpu", 64)), params, tokens)


@pytest.mark.parametrize("kind, number", ALL)
def test_a_model_comes_in_and_goes_out_as_it_was(kind, number, tmp_path):
    theirs = make_theirs(kind, number)
    helpers.save_theirs(theirs, tmp_path / "in", DTYPES[number])
    view = safetensors.open_folder(tmp_path / "in")
    c, family, params = helpers.open_ours(view)
    tokens = certify.fixed_tokens(dataclasses.replace(c, positions=helpers.LENGTH))
    wanted = certify.their_outputs(theirs, tokens, c)
    found = outputs(c, params, tokens)
    assert np.abs(wanted).max() > 0.1
    assert np.abs(found - wanted).max() <= 1e-4 * max(np.abs(wanted).max(), 1)

    prefix = load.fill_map(family, c, view.tensors).prefix
    helpers.export_the_same(view, c, family, params, tmp_path / "out", prefix)
    loaded = type(theirs).from_pretrained(tmp_path / "out", dtype="float32").eval()
    same = certify.their_outputs(loaded, tokens, c)
    assert np.abs(same - wanted).max() <= 1e-6 * max(np.abs(wanted).max(), 1)


@pytest.mark.parametrize("kind", ["t5", "bart", "bert"])
def test_padding_changes_nothing(kind, tmp_path):
    """Rows of unequal length: an encoder's padding is seen by nobody, as with their mask."""
    theirs = make_theirs(kind, 0)
    helpers.save_theirs(theirs, tmp_path)
    c, _, params = helpers.open_ours(safetensors.open_folder(tmp_path))
    tokens, last = helpers.tokens_of(c.vocab), helpers.LAST
    mask = np.ones(tokens.shape, np.int32)
    mask[1, last:] = 0
    place = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (2, 1))
    batch = {"tokens": tokens, "position": place, "segment": mask}
    more = {}
    if c.assembly == "encoder_decoder":
        batch = {"tokens": tokens, "position": place, "segment": np.ones_like(mask)}
        batch |= {"inputs": tokens, "inputs_segment": mask}
        more = dict(decoder_input_ids=torch.from_numpy(tokens).long())
    with torch.no_grad():
        wanted = theirs(
            torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask), **more
        ).logits.numpy()
    found = np.asarray(jax.jit(models.make(c).apply)(params, batch))
    real = batch["segment"] > 0
    np.testing.assert_allclose(found[real], wanted[real], atol=1e-4)


def test_every_family_with_files_is_tried():
    families = {f for f in FAMILIES if FAMILIES[f].names}
    of_decoders = {family for family, _ in hf.TYPES.values()}
    assert families - of_decoders == set(hf_stacks.ARCHITECTURES)
    assert set(hf_stacks.READERS) == set(CASES)


def test_every_published_size_can_be_said_in_a_config_json():
    for name in hf_stacks.ARCHITECTURES:
        for size in FAMILIES[name].sizes:
            c = model_config({"family": name, "size": size}, vocab=1, length=1)
            hf_write.to_hf(c, name)  # reads it back itself


def test_files_of_the_first_years_are_read(tmp_path):
    """Buffers of places, copies of tied heads, poolers that a masked LM has no use for."""
    theirs = make_theirs("bert", 0)
    helpers.save_theirs(theirs, tmp_path)
    view = safetensors.open_folder(tmp_path)
    tensors, of = dict(view.tensors), view.tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = of
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    place = np.arange(40)[None]
    tensors["bert.embeddings.position_ids"] = of._replace(
        shape=place.shape, dtype=place.dtype, read=lambda index: place[index]
    )
    for end, shape in (("weight", (24, 24)), ("bias", (24,))):
        zeros = np.zeros(shape, np.float32)
        tensors[f"bert.pooler.dense.{end}"] = of._replace(
            shape=shape, read=lambda index, zeros=zeros: zeros[index]
        )
    values = load.read_config(view)
    c = model_config(values, vocab=1, length=20)
    _, copies, ignored = load.check(view._replace(tensors=tensors), c, "bert")
    assert sorted(copies) == ["cls.predictions.decoder.bias", "cls.predictions.decoder.weight"]
    assert sorted(ignored) == [
        "bert.embeddings.position_ids", "bert.pooler.dense.bias", "bert.pooler.dense.weight",
    ]  # fmt: skip
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.transform.dense.bias"]
    with pytest.raises(ConfigError, match=r"decoder\.bias"):
        load.check(view._replace(tensors=tensors), c, "bert")


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("bert", dict(position_embedding_type="relative_key"), "position_embedding_type"),
        ("bert", dict(is_decoder=True), "is_decoder"),
        ("bert", dict(hidden_act="mish"), "mish"),
        ("bert", dict(rotary_value=True), "rotary_value"),
        ("bert", dict(architectures=["BertForMultipleChoice"]), "MultipleChoice"),
        ("bert", dict(hidden_size="24"), "hidden_size"),
        ("bert", dict(num_hidden_layers=None), "num_hidden_layers"),
        ("t5", dict(feed_forward_proj="gated-mish"), "gated-mish"),
        ("t5", dict(d_model=None), "d_model"),
        ("bart", dict(decoder_ffn_dim=31), "decoder_ffn_dim"),
        ("bart", dict(normalize_before=True), "normalize_before"),
        ("bart", dict(tie_word_embeddings=False), "tie_word_embeddings"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(kind, fields, says):
    name, sizes = CASES[kind][0]
    data = getattr(transformers, name).config_class(**sizes).to_dict()
    data |= {"architectures": [name]} | fields
    data = json.loads(json.dumps({k: v for k, v in data.items() if v is not None}))
    with pytest.raises(ConfigError, match=says):
        hf.from_hf(data, strict=True)
