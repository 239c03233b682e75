"""The MLP of a layer, which all tokens go through."""

from flax import nnx

from jaxllm.models.layers import ACTIVATIONS, Projection, keep


class Mlp(nnx.Module):
    """Two matrices, or three where gated (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, c, width, *, rngs):
        sizes = {"D": c.width, "F": width}
        keywords = dict(bias=c.mlp_bias, c=c, rngs=rngs)
        self.gate = Projection("BTD,DF->BTF", sizes, **keywords) if c.gated else None
        self.up = Projection("BTD,DF->BTF", sizes, **keywords)
        std = (width * 2 * c.layers) ** -0.5
        self.down = Projection("BTF,FD->BTD", sizes, std=std, sums=True, **keywords)
        self.activation = c.activation

    def __call__(self, x_BTD, shard):
        """Returns [B, T / tensor, D] of x joined over `tensor`."""
        return self.down(shard(self.inside(x_BTD), "batch", "length", "mlp"))

    def inside(self, x, **options):
        """Returns what `down` multiplies; options are those of `Projection`."""
        act, up = ACTIVATIONS[self.activation], keep(self.up(x, **options))
        return act(up) if self.gate is None else act(keep(self.gate(x, **options))) * up
