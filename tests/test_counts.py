"""Parameters and bytes against published numbers, to the last digit that is printed."""

import math

import pytest

from jaxllm import finetune, models
from jaxllm.models.config import resolve
from jaxllm.models.families import FAMILIES
from jaxllm.scaling import counts

GIB = 2**30


def model(family, size, **fields):
    """(ModelConfig, {path: ParamInfo}) of a published size, or of `fields` over it."""
    shared, sizes, _ = FAMILIES[family]
    c = resolve({**shared, **sizes.get(size, {}), **fields}, vocab=1, length=1)
    return c, models.abstract_params(c)


def added(c, kind, **options):
    """How many parameters a fine-tuning method trains."""
    trained, _ = finetune.infos(finetune.METHODS[kind](**options), c)
    return sum(math.prod(info.shape) for info in trained.values())


@pytest.mark.parametrize(
    "family, size, total",
    [
        ("gpt2", "124m", 124_439_808),
        ("llama", "7b", 6_738_415_616),
        ("llama", "70b", 68_976_648_192),
        ("llama", "3-8b", 8_030_261_248),
        ("llama", "3.2-1b", 1_235_814_400),
        ("mistral", "7b", 7_241_732_096),
        ("mixtral", "8x7b", 46_702_792_704),
        ("gemma", "2b", 2_506_172_416),
        ("llama", "smollm2-135m", 134_515_008),
        ("t5", "small", 60_506_624),
        ("t5", "base", 222_903_552),
        ("t5v1.1", "base", 247_577_856),
    ],
)
def test_published_numbers_of_parameters(family, size, total):
    c, infos = model(family, size)
    assert counts.count(infos, c).total == total


def test_a_token_meets_two_of_eight_experts():
    """Mixtral 8x7B has 12.9e9 active parameters (arXiv:2401.04088)."""
    c, infos = model("mixtral", "8x7b")
    assert counts.count(infos, c).active == 12_879_925_248


def test_tables_are_left_out_and_the_head_is_not():
    c, infos = model("llama", "7b")
    assert counts.count(infos, c).without_tables == 6_738_415_616 - 32_000 * 4096
    c, infos = model("gpt2", "124m")
    assert counts.count(infos, c).without_tables == 124_439_808 - (50_257 + 1024) * 768


GPT3 = dict(
    layers=96, width=12288, heads=96, kv_heads=96, mlp_width=49152, vocab=50257, head_width=128
)
QWEN_3B = dict(
    layers=36, width=2048, heads=16, kv_heads=2, head_width=128, mlp_width=11008, vocab=151936
)


@pytest.mark.parametrize(
    "family, size, fields, rank, trained",
    [
        ("llama", "1-7b", {}, 8, 4_194_304),
        ("gpt2", "", GPT3, 8, 37_748_736),
        ("qwen2", "", QWEN_3B, 16, 3_686_400),
    ],
)
def test_lora_trains_what_was_published(family, size, fields, rank, trained):
    """On q and v: LLaMA-7B, GPT-3 175B (arXiv:2106.09685, table 4), Qwen2.5-3B."""
    c, _ = model(family, size, **fields)
    assert added(c, "lora", rank=rank, targets="attn/(q|v)$") == trained


def test_every_expert_gets_its_own_low_rank_update():
    c, _ = model("mixtral", "8x7b")
    wide = 32 * 8 * 4 * (4096 + 14336)
    assert added(c, "lora", rank=4, targets="experts/(up|gate|down)$") == 3 * wide


def test_nf4_takes_what_qlora_says():
    """4.127 bits a parameter; 33.6 GB for the 65.2e9 of LLaMA-65B (arXiv:2305.14314)."""
    c, infos = model("llama", "1-65b")
    _, frozen = finetune.infos(finetune.METHODS["qlora"](), c)
    few = {path for path in infos if f"{path}/codes" in frozen}
    held = [info for path, info in frozen.items() if path.rpartition("/")[0] in few]
    bits = 8 * sum(math.prod(info.shape) * info.dtype.itemsize for info in held)
    bits /= sum(math.prod(infos[path].shape) for path in few)
    assert round(bits, 3) == 4.127
    assert round(65.2e9 * bits / 8 / 1e9, 1) == 33.6


@pytest.mark.parametrize(
    "family, size, head, largest, total, adam",
    [
        ("phi3", "3.5-mini", True, "432.02 MB", "14.23 GB", "56.94 GB"),
        ("llama", "13b", False, "1.18 GB", "47.88 GB", "191.51 GB"),
        ("llama", "13b", True, "1.18 GB", "48.49 GB", "193.95 GB"),
    ],
)
def test_sizes_are_those_of_accelerate(family, size, head, largest, total, adam):
    """`accelerate estimate-memory`, whose MB and GB are 2^20 and 2^30 bytes."""
    found = counts.sizes(model(family, size)[1], head=head)
    assert f"{found.total / GIB:.2f} GB" == total and f"{found.adam / GIB:.2f} GB" == adam
    words = f"{found.largest_layer / GIB:.2f} GB"
    assert largest in (words, f"{found.largest_layer / 2**20:.2f} MB")


BARE = dict(
    lm_head=False, head_transform=False, head_bias=False, task="embed", pool="mean", pool_layer=True
)


def test_sizes_of_an_encoder_are_those_of_accelerate():
    """Of bert-base-cased, as accelerate's own guide has it: 84.95 MB of 413.18 MB, 1.61 GB."""
    c, infos = model("bert", "base-cased", **BARE)
    assert counts.count(infos, c).total == 108_310_272
    found = counts.sizes(infos)
    assert round(found.largest_layer / 2**20, 2) == 84.95
    # Its program holds two lists of 512 places besides, of 8 bytes each.
    assert round((found.total + 2 * 512 * 8) / 2**20, 2) == 413.18
    assert round(found.adam / GIB, 2) == 1.61


@pytest.mark.parametrize("family, heads", [("t5", 4), ("griffin", 4)])
def test_the_largest_layer_is_one_of_those_that_there_are(family, heads):
    """A decoder's with what looks at the encoder; of two kinds the larger one, not both."""
    size = dict(layers=6, width=64, heads=heads, kv_heads=heads, mlp_width=96, vocab=9)
    size |= dict(head_width=16, positions=16)
    _, infos = model(family, "", **size)
    attention, mlp = 4 * 64 * 64, 64 * 96 * (2 if family == "t5" else 3)
    inside = 64 * 64 * 3 + 2 * 64 * 16 + 64 * (3 + 4 + 4)  # matrices, gates, biases and taps
    larger = max(inside, attention + 64)
    layers = {"t5": 2 * attention + mlp + 3 * 64, "griffin": larger + mlp + 4 * 64 + 2 * 64}
    assert counts.sizes(infos).largest_layer == 4 * layers[family]


def test_what_is_added_to_adapt_stands_in_both_stacks():
    """Adapters of T5-base in 24 layers, low-rank updates of 36 attentions; what is read before a
    document in the encoder's 12."""
    c, _ = model("t5", "base")
    assert added(c, "prefix", tokens=10) == 10 * 12 * 2 * 768
    assert added(c, "adapter", width=64) == 24 * 2 * (2 * 768 * 64 + 64 + 768)
    assert added(c, "lora", rank=8, targets="(attn|cross)/(q|v)$") == 36 * 2 * 8 * (768 + 768)


def test_decoding_keeps_what_an_encoder_made_and_no_keys_of_recurrences():
    c, _ = model("t5", "base")
    assert counts.kv_cache_bytes(c, 10, inputs=5) == 12 * 15 * 2 * 768 * 2
    size = dict(layers=6, width=64, heads=4, kv_heads=1, mlp_width=96, vocab=9, window=8)
    c, _ = model("griffin", "", **size)
    assert counts.kv_cache_bytes(c, 32) == 2 * 8 * 2 * c.head_width * 2 + 4 * 64 * (4 + 3 * 2)


@pytest.mark.parametrize("part, size", [(2, 7.12), (4, 3.56), (8, 1.78)])
def test_narrower_types_are_parts_of_float32(part, size):
    found = counts.sizes(model("phi3", "3.5-mini")[1])
    assert round(found.total / part / GIB, 2) == size


@pytest.mark.parametrize("stage, size", [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_zero_splits_as_its_paper_says(stage, size):
    """7.5e9 parameters on 64 devices (arXiv:1910.02054, figure 1)."""
    found = counts.zero_bytes(7.5e9, 64, stage) / 1e9
    assert found == pytest.approx(size, abs=0.05 if stage < 3 else 0.005)


def test_windows_keep_no_more_than_themselves():
    size = dict(layers=2, width=64, heads=4, kv_heads=2, mlp_width=64, vocab=9, window=8)
    c, _ = model("gemma2", "", **size)
    assert counts.kv_cache_bytes(c, 32) == (8 + 32) * 2 * 2 * c.head_width * 2
