"""What is read from a compiled program's text, against what the program was written to do."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.scaling import hlo
from tests import runs

LAYERS, ROWS, WIDTH = 5, 16, 32


def compiled_costs(function, *shapes):
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.costs(jax.jit(function).lower(*structs).compile().as_text())


def scanned(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_products_in_a_loop_count_as_often_as_it_runs():
    """Forward one product a layer, backward two; a product of m x k and k x n is 2·m·k·n."""
    shapes = (ROWS, WIDTH), (LAYERS, WIDTH, WIDTH)
    one = 2 * ROWS * WIDTH * WIDTH
    assert compiled_costs(scanned, *shapes).matmul_flops == LAYERS * one
    gradient = jax.grad(lambda x, w: scanned(x, w).sum(), argnums=(0, 1))
    assert compiled_costs(gradient, *shapes).matmul_flops == 3 * LAYERS * one


def test_bytes_on_the_wire_count_as_often_as_they_are_sent():
    mesh = runs.mesh(fsdp=8)

    def layer(x, w):
        x = x @ jax.lax.all_gather(w, "fsdp", tiled=True)
        return x, jax.lax.psum_scatter(x, "fsdp", scatter_dimension=1, tiled=True)

    def function(x, weights):
        x, parts = jax.lax.scan(layer, x, weights)
        return jax.lax.psum(x.sum(), "fsdp"), parts

    specs = P("fsdp"), P(None, "fsdp")
    out = P(), P(None, "fsdp")
    spread = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    wire = compiled_costs(spread, (8 * ROWS, WIDTH), (LAYERS, WIDTH, WIDTH)).wire
    assert wire["all-gather"] == LAYERS * WIDTH * WIDTH * 4
    # Half of what an all-reduce of the same array would count.
    assert wire["reduce-scatter"] == LAYERS * ROWS * WIDTH * 4 / 2
    assert wire["all-reduce"] == 4


def test_convolutions_that_stand_for_products_of_heads():
    """As the TPU compiler writes them: windows over heads that meet padding, reversed or not."""
    text = """
ENTRY %main (x: bf16[4,2048,4096,1], w: bf16[4096,32,128,1]) -> bf16[4,2048,4096,1] {
  %x = bf16[4,2048,4096,1]{2,1,0,3} parameter(0)
  %w = bf16[4096,32,128,1]{2,0,1,3} parameter(1)
  %q = bf16[4,2048,32,128]{1,3,2,0} convolution(%x, %w), window={size=1x32 pad=0_0x31_31 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f
  ROOT %d = bf16[4,2048,4096,1]{2,1,0,3} convolution(%q, %w), window={size=1x32}, dim_labels=0b1f_o1i0->0bf1
}
"""  # noqa: E501
    assert hlo.costs(text).matmul_flops == 2 * 2 * (4 * 2048) * 4096 * 4096


def test_a_loop_without_a_bound_is_not_guessed():
    function = lambda x: jax.lax.while_loop(lambda x: x.sum() < 3.5, lambda x: x * 2, x)  # noqa: E731
    with pytest.raises(ValueError, match="no bound"):
        compiled_costs(function, (3,))


def test_a_collective_beside_products_counts_once():
    """As the TPU compiler writes one that goes on while it computes."""

    def computation(name, result="bf16[8,4]"):
        return f"""
%{name} (p: bf16[1,4]) -> {result} {{
  %p = bf16[1,4]{{1,0}} parameter(0)
  ROOT %gather.{name} = bf16[8,4]{{1,0}} all-gather(%p), channel_id=3, dimensions={{0}}
}}
"""

    text = computation("start") + computation("async_collective_fusion.1") + computation("done")
    text += """
ENTRY %main (a: bf16[1,4]) -> bf16[8,4] {
  %a = bf16[1,4]{1,0} parameter(0)
  %async-collective-start.1 = bf16[8,4]{1,0} fusion(%a), kind=kCustom, calls=%start
  %fusion.1 = bf16[8,4]{1,0} fusion(%a), kind=kOutput, calls=%async_collective_fusion.1
  ROOT %async-collective-done.1 = bf16[8,4]{1,0} fusion(%a), kind=kCustom, calls=%done
}
"""
    assert hlo.costs(text).wire == {"all-gather": 8 * 4 * 2}


@pytest.mark.parametrize(
    "groups, axes",
    [
        ("{{0,1,2,3},{4,5,6,7}}", ("fsdp", "tensor")),
        ("{{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("{{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("{{0,2},{1,3}}", ("fsdp",)),
        ("[4,2]<=[8]", ("tensor",)),
        ("[4,2]<=[2,4]T(1,0)", ("data",)),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", ("fsdp", "tensor")),
        ("mesh['a'=8] {'a'}", ("data", "fsdp", "tensor")),
        ("", ("data", "fsdp", "tensor")),
        ("{}", ("data", "fsdp", "tensor")),
        ("{{0,1},{1,0}}", ("tensor",)),  # pairs of a permutation
    ],
)
def test_groups_are_named_by_the_axes_that_they_go_over(groups, axes):
    assert hlo.axes_of(groups, dict(data=2, fsdp=2, tensor=2)) == axes


def test_the_axis_of_a_real_collective_is_found():
    mesh = runs.mesh(data=2, fsdp=4)

    def function(x):
        return jax.lax.psum(x, "data"), jax.lax.all_gather(x, "fsdp")

    spread = jax.shard_map(
        function, mesh=mesh, in_specs=P("fsdp"), out_specs=(P("fsdp"), P()), check_vma=False
    )
    text = jax.jit(spread).lower(jax.ShapeDtypeStruct((8, 4), jnp.float32)).compile().as_text()
    sent = {sent.kind: hlo.axes_of(sent.groups, mesh.shape) for sent in hlo.costs(text).sent}
    assert sent == {"all-reduce": ("data",), "all-gather": ("fsdp",)}
