"""The MLP of a layer, which all tokens go through."""

import jax
from flax import nnx

from jaxllm.models.layers import ACTIVATIONS, Projection, keep


def put_apart(c):
    """Whether the first product's result stands apart from what is fused into the others.

    A TPU's compiler chooses badly, where all is computed again, which product the activation's
    backward pass goes into: 2 % of a whole step's cycles (experiments/LOG.md).
    """
    return c.gated and c.products == "direct" and c.remat in ("full", "offload")


class Mlp(nnx.Module):
    """Two matrices, or three where gated (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, c, width, *, rngs):
        sizes = {"D": c.width, "F": width}
        keywords = dict(bias=c.mlp_bias, c=c, rngs=rngs)
        self.gate = Projection("BTD,DF->BTF", sizes, **keywords) if c.gated else None
        self.up = Projection("BTD,DF->BTF", sizes, **keywords)
        std = (width * 2 * c.layers) ** -0.5
        self.down = Projection("BTF,FD->BTD", sizes, std=std, sums=True, **keywords)
        self.activation, self.apart = c.activation, put_apart(c)

    def __call__(self, x_BTD, shard):
        """Returns [B, T / tensor, D] of x joined over `tensor`."""
        return self.down(shard(self.inside(x_BTD), "batch", "length", "mlp"))

    def inside(self, x, **options):
        """Returns what `down` multiplies; options are those of `Projection`."""
        act, up = ACTIVATIONS[self.activation], self.up(x, **options)
        up = keep(jax.lax.optimization_barrier(up) if self.apart else up)
        return act(up) if self.gate is None else act(keep(self.gate(x, **options))) * up
