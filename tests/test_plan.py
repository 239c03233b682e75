"""Plans, as a user asks for them, and what must hold of all of them."""

import importlib.util
import json
import math
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxllm import settings
from jaxllm.config import ConfigError
from jaxllm.scaling import (
    adapt,
    changes,
    estimate,
    machines,
    memory,
    search,
    share,
    traced,
    work,
)
from jaxllm.training import setup
from tests import runs
from tests.conftest import LIBTPU

MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
SEVEN_B = "configs/pretrain.py:family=llama,size=7b"


def planned(topology="v4-128", slices=1, file=SEVEN_B, **fields):
    """The `Estimate` of a config; settings with "__" in place of dots."""
    pairs = [(name.replace("__", "."), str(value)) for name, value in fields.items()]
    config, _ = settings.load(file, pairs, setup.KINDS)
    machine = machines.find(topology, slices)
    setup.check_program(config, machine.count)
    return estimate.of(config, machine, setup.vocabulary(config))


def command(*arguments, file=SEVEN_B):
    return runs.call([sys.executable, "-m", "jaxllm.plan", f"--config={file}", *arguments])


def test_the_command_prints_a_page_and_says_whether_it_fits():
    done = command("--topology=v4-128")
    assert done.returncode == 0, done.stderr
    assert "6,738,415,616" in done.stdout and "fits" in done.stdout and "USD" in done.stdout
    small = command("--topology=v5e-4", "--config.data.batch=4", "--config.validate.batch=4")
    assert small.returncode == 1 and "DOES NOT FIT" in small.stdout


def test_json_says_the_same_as_the_library():
    done = command("--topology=v4-128", "--json")
    data, found = json.loads(done.stdout), planned()
    assert data["memory"]["total"] == found.memory.total
    assert data["parameters"]["total"] == found.counts.total == 6_738_415_616
    assert data["hidden"]["step_s"] == found.times.hidden <= data["exposed"]["step_s"]
    hours = data["exposed"]["device_hours"]
    assert data["exposed"]["cost"] == pytest.approx(3.22 * hours)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--topology=v4-100"], "Try --topology=v4-128"),
        (["--topology=v9"], "Known"),
        (["--topology=v4-128", "--config.data.batch=250"], "Try --config.data.batch=256"),
        (["--topology=v4-128", "--config.model.layer=2"], "layers"),
        (["--topology=v4-128", "--slices=0"], "--slices=1"),
        (["--topology=h100-8", "--compile"], "no compiler is here for h100-8"),
    ],
)
def test_what_is_wrong_is_said_as_in_training(arguments, says):
    done = command(*arguments)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_a_vocabulary_that_only_the_text_tells_is_asked_for():
    file = "configs/shakespeare_char.py"
    config, _ = settings.load(file, [], setup.KINDS)
    with pytest.raises(ConfigError, match=r"--config\.model\.vocab"):
        setup.vocabulary(config)
    assert planned("h100-1", file=file, model__vocab=65).counts.total > 1e6


def test_a_trillion_parameters_are_planned_too():
    sizes = dict(layers=128, width=24576, heads=192, mlp_width=98304, vocab=128000)
    fields = {f"model__{name}": size for name, size in sizes.items()}
    file = "configs/pretrain.py:family=llama,size="
    found = planned("v5p-12288", file=file, data__batch=6144, validate__batch=6144, **fields)
    assert found.counts.total > 1e12 and found.memory.total > 0


def test_more_devices_hold_less_state_each():
    few, many = planned("v4-64", model__remat="full"), planned("v4-128")
    assert few.memory.arguments == pytest.approx(2 * many.memory.arguments, rel=1e-3)


def test_what_is_not_kept_is_computed_again():
    """Full remat takes least memory and most FLOPs; none the other way round."""
    found = [planned(model__remat=remat) for remat in ("full", "light", "none")]
    memory, work = ([f(x) for x in found] for f in (lambda x: x.memory.total, flops_of))
    assert memory == sorted(memory) and work == sorted(work, reverse=True)


def flops_of(found):
    return found.products.total


def test_micro_batches_save_memory_and_gather_again():
    fields = dict(model__remat="light", objective__chunk=2048)
    one, four = planned(**fields), planned(**fields, step__micro_batches=4)
    assert four.memory.total < one.memory.total / 2
    assert four.wire.by_kind()["all-gather"] == 4 * one.wire.by_kind()["all-gather"]
    assert four.products.total == one.products.total


def test_slices_talk_over_the_network():
    fields = dict(mesh__slice=2, data__batch=512, validate__batch=512)
    found = planned(slices=2, **fields)
    assert found.times.wire["slice"] > planned().times.wire["fsdp"] / 10
    assert set(found.times.wire) == {"slice", "fsdp"}


def test_what_does_not_fit_gets_the_smallest_change_that_does():
    fields = dict(model__remat="none", data__batch=512, validate__batch=512)
    found = planned(**fields)
    assert not found.fits

    def again(changes):
        return planned(**fields | {name.replace(".", "__"): text for name, text in changes})

    change = changes.smallest(again, found, found.memory.total)
    assert change["settings"] == [["model.remat", "full"]] and again(change["settings"]).fits
    # By a compiler that needs far more, one change is no longer enough.
    tight = changes.smallest(again, found, 9 * found.memory.total)
    assert tight is None or len(tight["settings"]) > 1
    done = command(
        "--topology=v4-128", *(f"--config.{n.replace('__', '.')}={v}" for n, v in fields.items())
    )
    assert done.returncode == 1 and "--config.model.remat=full" in done.stdout


def test_nothing_fits_a_machine_that_cannot_hold_the_state():
    done = command("--topology=v5e-4", "--config.data.batch=4", "--config.validate.batch=4")
    assert done.returncode == 1 and "take more devices" in done.stdout


def test_a_hugging_face_model_is_planned_with_the_sizes_that_accelerate_prints(tmp_path):
    """Llama-2-13b: 47.88 GB without its head, 11.97 in int8, 5.98 in int4, 191.51 with Adam."""
    file = tmp_path / "config.json"
    sizes = dict(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, vocab_size=32000)
    data = dict(model_type="llama", num_attention_heads=40, num_key_value_heads=40, **sizes)
    file.write_text(json.dumps(data))
    done = command("--topology=v4-128", f"--hf={file}")
    assert done.returncode == 0, done.stderr
    assert "13,015,864,320" in done.stdout
    for words in ("float32 47.88", "int8 11.97", "int4 5.98", "Adam in float32 191.51", "48.49"):
        assert words in done.stdout
    file.write_text("[1]")
    for wrong, says in ((file, "no JSON object"), (tmp_path / "none.json", "No such file")):
        done = command("--topology=v4-128", f"--hf={wrong}")
        assert done.returncode == 2 and says in done.stderr


ONE = dict(data__batch=1, validate__batch=1)


def ways_on(topology, **fields):
    """{way to adapt a model: its `Estimate`}."""
    return {w: planned(topology, finetune__kind=kind, **fields) for w, kind in adapt.WAYS.items()}


NOWHERE = dict.fromkeys(adapt.WAYS)  # the smallest machine of each, where it is not asked


def test_seventy_billion_parameters_are_tuned_on_one_device_by_qlora_alone():
    """On 80 GB; and on the 48 GB of its paper's abstract (arXiv:2305.14314)."""
    file = "configs/pretrain.py:family=llama,size=70b"
    for topology in ("h100-1", "l40s-1"):
        found = ways_on(topology, file=file, **ONE)
        assert [way for way, one in found.items() if one.fits] == ["qlora"]


def test_ways_to_adapt_cost_what_they_train():
    found = ways_on("h100-8", data__batch=8, validate__batch=8)
    ways = {way.name: way for way in adapt.compare(found, 1e7, 2.0, NOWHERE)}
    found = found["full"]
    assert ways["lora"].trained == 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert ways["prompt"].trained == 20 * 4096
    assert ways["qlora"].memory < ways["lora"].memory < ways["full"].memory
    assert ways["lora"].seconds < ways["full"].seconds == ways["scratch"].seconds
    hours = 1e7 / found.step_tokens * ways["full"].seconds / 3600
    assert ways["full"].cost == pytest.approx(2.0 * 8 * hours)
    assert ways["scratch"].tokens == 20 * found.counts.total


@pytest.mark.parametrize(
    "topology, tokens, as_much_as, verdict",
    [
        ("v4-128", 2e11, "", "scratch"),
        ("v4-128", 2e9, "", "full"),
        ("v4-128", 1e7, "", "lora"),
        ("v4-128", 2e4, "", "in context"),
        ("v4-128", 2e9, "lora", "lora"),  # no more money than LoRA takes
    ],
)
def test_the_verdict_goes_by_data_and_money(topology, tokens, as_much_as, verdict):
    found = ways_on(topology)
    ways = adapt.compare(found, tokens, 3.22, NOWHERE)
    budget = next((way.cost for way in ways if way.name == as_much_as), 0)
    assert adapt.verdict(ways, tokens, budget)[0] == verdict


def test_a_machine_that_is_too_small_leaves_qlora_or_nothing():
    file = "configs/pretrain.py:family=llama,size=70b"
    for topology, verdict in (("h100-1", "qlora"), ("l4-1", "none")):
        ways = adapt.compare(ways_on(topology, file=file, **ONE), 1e7, None, NOWHERE)
        assert adapt.verdict(ways, 1e7, 0)[0] == verdict


def test_the_command_names_the_smallest_machine_that_holds_each_way():
    done = command(
        "--topology=h100-8", "--adapt", "--tokens=1e7", "--json",
        "--config.data.batch=8", "--config.validate.batch=8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)["adapt"]
    smallest = {way["name"]: way["machine"] for way in data["ways"]}
    size = {
        name: machines.find(machine).count * machines.find(machine).device.hbm_bytes
        for name, machine in smallest.items()
    }
    assert size["qlora"] <= size["lora"] < size["full"] == size["scratch"]
    assert data["verdict"][0] == "lora"


def test_a_run_writes_its_plan_beside_what_it_measured(tmp_path):
    config = runs.config({"steps": 2, "validate.every": 0})
    assert runs.train(config, tmp_path) == 0
    found = runs.summary(tmp_path)["plan"]
    vocab = json.loads((tmp_path / "config.json").read_text())["model"].get("vocab") or 259
    own = share.describe(config, 1, "cpu", vocab)
    assert found["planned"]["flops"] == work.products(own).total
    assert found["planned"]["memory_bytes"] == round(memory.of(own).total)
    assert found["planned"]["compiled_bytes"] > 4 * sum(map(own.stored, own.infos))
    assert found["measured"]["step_s"] > 0


def test_without_a_topology_it_is_this_machine_and_remat_saves_its_memory_too():
    """On a CPU: FLOPs as the compiler counts them, Muon's own among them; memory within 15 %."""
    sizes = ["model.vocab=66", "data.length=64", "runtime.cpu_devices=2", "runtime.compile_cache="]
    words = [f"--config.{field}" for field in sizes]
    compiled = {}
    for remat in ("none", "full"):
        done = command(
            *words, f"--config.model.remat={remat}", "--compile", "--json",
            file="configs/shakespeare_char.py",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        data = json.loads(done.stdout)
        own, kinds = data["compiled"], data["flops"]["a_step_and_device"]
        assert kinds["optimizer"] > 0
        assert own["flops"] == pytest.approx(sum(kinds.values()), rel=1e-3)
        assert own["peak"] == pytest.approx(data["memory"]["total"], rel=0.15)
        assert any("jaxllm/models" in buffer["line"] for buffer in own["buffers"])
        compiled[remat] = own["temporaries"]
    assert compiled["full"] < compiled["none"] / 1.7


def test_products_of_any_traced_function_are_counted():
    """A product of [2, 3] and [3, 5] is 60 FLOPs; in a loop of 7, 420."""
    a, b = jax.ShapeDtypeStruct((2, 3), "float32"), jax.ShapeDtypeStruct((3, 5), "float32")

    def repeated(a, b):
        return jax.lax.fori_loop(
            0, 7, lambda _, x: x + jax.jit(jnp.matmul)(a, b), jnp.zeros((2, 5))
        )

    assert traced.product_flops(jnp.matmul, a, b) == 60
    assert traced.product_flops(repeated, a, b) == 420
    assert traced.product_flops(jnp.add, a, a) == 0

    def until(a, b):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + a @ b, jnp.zeros((2, 5)))

    with pytest.raises(ValueError, match="loop"):
        traced.product_flops(until, a, b)


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path):
    file = tmp_path / "plan.png"
    done = command("--topology=v4-128", f"--plot={file}")
    if MATPLOTLIB:
        assert done.returncode == 0 and file.read_bytes().startswith(b"\x89PNG")
    else:
        assert done.returncode == 2 and "requirements-plot" in done.stderr


def test_a_search_finds_what_is_faster_and_its_line_says_it():
    done = command("--topology=v4-128", "--search", "--best=0", "--json")
    assert done.returncode == 0, done.stderr
    best, *others = json.loads(done.stdout)["search"]
    own, pick = planned(), planned(**{n.replace(".", "__"): v for n, v in best["settings"]})
    assert pick.fits and pick.times.exposed == pytest.approx(best["step_s"])
    assert own.times.exposed / pick.times.exposed > 1.15  # than fsdp with full remat
    # A Pareto front: slower ones need less memory.
    sizes = [one["memory"] for one in [best, *others]]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) > 1


@pytest.mark.parametrize("topology, slices", [("v5e-16", 2), ("h100-16", 1)])
def test_every_layout_uses_every_device_once(topology, slices):
    fields = dict(data__batch=64, validate__batch=64)
    fields |= dict(mesh__slice=2) if slices > 1 else {}
    found = planned(topology, slices, **fields)
    meshes = search.meshes(found)
    assert len({tuple(mesh.items()) for mesh in meshes}) == len(meshes) > 10
    assert {math.prod(mesh.values()) for mesh in meshes} == {found.machine.count}
    assert {mesh["slice"] for mesh in meshes} == {slices}


def test_compiling_puts_what_the_compiler_finds_too_large_last():
    found = planned()
    first, second, third = (search.Layout((("a", str(i)),), found, None, 1.0) for i in range(3))
    words = {first.settings: (None, 1e12), second.settings: (None, 1e9)}
    best = search.compile_best([first, second, third], lambda one: words[one.settings], 2)
    assert [one.settings for one in best] == [second.settings, first.settings, third.settings]
    assert best[0].fits and not best[1].fits


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="pip install -r requirements-tpu.txt")
def test_the_compiler_agrees_with_the_closed_form(tmp_path):
    sizes = dict(layers=4, width=1024, heads=8, mlp_width=4096, vocab=8192)
    words = [f"--config.model.{name}={size}" for name, size in sizes.items()]
    words += ["--config.data.batch=16", "--config.validate.batch=16", "--topology=v4:2x2x1"]
    words += ["--compile", "--json", f"--dump-hlo={tmp_path}"]
    done = command(*words, file="configs/pretrain.py:family=llama,size=")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    own = data["compiled"]
    counted = sum(
        data["flops"]["a_step_and_device"][name]
        for name in ("useful", "again", "attention", "bubble", "optimizer")
    )
    assert own["flops"] == pytest.approx(counted, rel=0.02)
    # So small a model lives partly in the chip's near memory: only its state is compared here.
    assert own["arguments"] == pytest.approx(sum(data["memory"]["state"].values()), rel=0.01)
    assert any("jaxllm/models" in buffer["line"] for buffer in own["buffers"])
    assert list(tmp_path.glob("*jit_step*.after_codegen.txt"))
