"""How far below the output each parameter stands, for what changes with depth."""

# Parts of a stack above its layers; all others that are in no layer stand below them.
ABOVE = ("final_norm", "head", "head_bias", "transform", "transform_norm", "pool", "task")


def below_output(c, infos):
    """Returns how many steps below the output each parameter stands.

    Args:
        c: the model's configuration.
        infos: {path: ParamInfo}.

    Returns:
        {path: tuple of numbers}: of stacked layers one for each, else one. 0 is what reads the last
        layer, 1 the last of n layers, n the first, n + 1 the embeddings. The encoder of an
        encoder-decoder is counted by itself; a table that both read has the larger number.
    """
    deepest = max(c.layers, c.encoder_layers) + 1
    found = {}
    for path in infos:
        own, stack, below = path, c, deepest
        if path.startswith("encoder/"):
            own, stack = path.removeprefix("encoder/"), c.of_encoder
            below = stack.layers + 1
        top, _, rest = own.partition("/")
        if top == "layers":
            rows = layers_having(stack, rest.split("/")[0])
            rows = rows or [0] * infos[path].shape[0]  # of a part that no layer has
            found[path] = tuple(stack.layers - layer for layer in rows)
        else:
            found[path] = (0,) if top in ABOVE else (below,)
    return found


def layers_having(c, part):
    """Returns the numbers of the layers of a stack that have a part of a block.

    Args:
        c: the stack's configuration.
        part: its name, such as "mlp".
    """
    having = range(c.layers)
    if part in ("mlp", "moe") and c.experts and c.moe_every > 1:
        return [i for i in having if c.has_experts(i) == (part == "moe")]
    if part in ("attn", "recurrence") and c.attention_every:
        return [i for i in having if c.has_attention(i) == (part == "attn")]
    return list(having)
