"""RG-LRU, a gated linear recurrence (De et al. 2024, Griffin, arXiv:2402.19427)."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.models.layers import ACTIVATIONS, ZEROS, Projection, keep, make_param

SHARPNESS = 8.0  # c of the paper's equation 3
_STEEPEST = 1000.0  # of the gradient of a square root near 0


def _rate(key, shape, dtype):
    """Λ of decays that are uniform between 0.9 and 0.999 when the gate is open (section 2.4)."""
    decay = jax.random.uniform(key, shape, dtype, 0.9, 0.999)
    return jnp.log(jnp.expm1(-jnp.log(decay) / SHARPNESS))


@jax.custom_vjp
def _root(x):
    """A square root whose gradient is bounded."""
    return jnp.sqrt(x)


_root.defvjp(
    lambda x: (jnp.sqrt(x), x),
    lambda x, g: (g / jnp.sqrt(jnp.maximum(4 * x, _STEEPEST**-2)),),
)


class Recurrence(nnx.Module):
    """A gate beside a short convolution and a recurrence, in the place of attention.

    Args:
        c: the model's configuration.
        rngs: random keys.
    """

    def __init__(self, c, *, rngs):
        block = c.recurrent_width // c.heads
        sizes = {"D": c.width, "F": c.recurrent_width, "N": c.heads, "H": block, "W": block}
        keywords = dict(c=c, rngs=rngs)
        self.gate = Projection("BTD,DF->BTF", sizes, bias=True, **keywords)
        self.enter = Projection("BTD,DF->BTF", sizes, bias=True, **keywords)
        wide, axes = (c.conv_width, c.recurrent_width), ("taps", "mlp")
        taps = jax.nn.initializers.truncated_normal(c.conv_width**-0.5)
        self.conv = make_param(taps, rngs.params(), wide, axes)
        self.conv_bias = make_param(ZEROS, rngs.params(), wide[1:], axes[1:])
        self.rate = make_param(_rate, rngs.params(), wide[1:], axes[1:])

        def of_blocks():
            return Projection("BTNH,NHW->BTNW", sizes, hidden=False, **keywords)

        def bias():
            return make_param(ZEROS, rngs.params(), (c.heads, block), ("heads", "width"))

        self.input_gate, self.input_bias = of_blocks(), bias()
        self.rate_gate, self.rate_bias = of_blocks(), bias()
        std = (c.recurrent_width * 2 * c.layers) ** -0.5
        out = dict(bias=True, std=std, sums=True)
        self.o = Projection("BTF,FD->BTD", sizes, **out, **keywords)
        self.activation = c.activation

    def __call__(self, x_BTD, rows, shard, cache=None):
        """Recurs.

        Args:
            x_BTD: input, joined over `tensor`.
            rows: `attention.Rows`; a document begins anew at its position 0, and padding
                (segment 0) leaves the state as it is.
            shard: function (x, *logical axes) -> x.
            cache: None, or this layer's, as `cache.make` has it.

        Returns:
            (output [B, T / tensor, D], cache behind the row's last token, or None).
        """
        position_BT, real_BT = rows.key_position_BS, rows.query_segment_BT > 0
        beside_BTF = ACTIVATIONS[self.activation](keep(self.gate(x_BTD)))
        x_BTF = shard(keep(self.enter(x_BTD)), "batch", "length", "mlp")
        tail = None if cache is None else cache["tail"]
        x_BTF, tail = self._convolve(x_BTF, position_BT, real_BT, tail)
        state_BF = None if cache is None else cache["state"]
        x_BTF, state_BF = self._recur(x_BTF, position_BT, real_BT, state_BF)
        y_BTF = shard(x_BTF * beside_BTF, "batch", "length", "mlp")
        new = None if cache is None else {"tail": tail, "state": state_BF}
        return self.o(y_BTF), new

    def _convolve(self, x_BTF, position_BT, real_BT, tail_BPF):
        """Each channel's sum over the last few tokens of its document."""
        taps, T = self.conv[...].astype(x_BTF.dtype), x_BTF.shape[1]
        P = taps.shape[0] - 1
        if tail_BPF is None:
            tail_BPF = jnp.zeros((x_BTF.shape[0], P, x_BTF.shape[2]), x_BTF.dtype)
        whole = jnp.concatenate([tail_BPF, x_BTF], axis=1)
        y_BTF = jnp.broadcast_to(self.conv_bias[...].astype(x_BTF.dtype), x_BTF.shape)
        for back in range(P + 1):
            seen_BT1 = (position_BT >= back)[..., None]
            then_BTF = whole[:, P - back : P - back + T]
            y_BTF = y_BTF + jnp.where(seen_BT1, then_BTF, 0) * taps[P - back]
        # The last ones of each row, behind which padding may stand.
        at_BP = jnp.sum(real_BT, axis=1, dtype=jnp.int32)[:, None] + jnp.arange(P)
        return y_BTF, jnp.take_along_axis(whole, at_BP[..., None], axis=1)

    def _recur(self, x_BTF, position_BT, real_BT, state_BF):
        """h = a · h + sqrt(1 - a²) · i · x, in float32 (equations 1 to 4)."""
        B, T, F = x_BTF.shape
        n = self.input_bias[...].shape[0]
        x_BTNH = x_BTF.reshape(B, T, n, F // n)

        def opened(gate, bias):
            score = gate(x_BTNH).astype(jnp.float32) + bias[...]
            return jax.nn.sigmoid(score).reshape(B, T, F)

        shrinks = jax.nn.softplus(self.rate[...])
        log_BTF = -SHARPNESS * opened(self.rate_gate, self.rate_bias) * shrinks
        begins_BT1 = (position_BT == 0)[..., None]
        enters = jnp.where(begins_BT1, 1.0, _root(-jnp.expm1(2 * log_BTF)))
        add = enters * opened(self.input_gate, self.input_bias) * x_BTF.astype(jnp.float32)
        decay = jnp.where(begins_BT1, 0.0, jnp.exp(log_BTF))
        decay = jnp.where(real_BT[..., None], decay, 1.0)
        add = jnp.where(real_BT[..., None], add, 0.0)
        if state_BF is not None:
            add = add.at[:, 0].add(decay[:, 0] * state_BF)

        def join(first, second):
            return first[0] * second[0], second[0] * first[1] + second[1]

        h_BTF = jax.lax.associative_scan(join, (decay, add), axis=1)[1]
        return h_BTF.astype(x_BTF.dtype), h_BTF[:, -1]
