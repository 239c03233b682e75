"""Samples text from a trained model.

python -m jaxllm.sample --workdir=DIR --prompt="ROMEO:" [--tokens=200] [--temperature=0.8]
    [--top_k=0] [--top_p=1] [--count=1] [--seed=0] [--step=latest|best|N]
"""

import jax
from absl import flags

from jaxllm import cli
from jaxllm.config import ConfigError
from jaxllm.models.decode import Sampling, left_pad, make_generate
from jaxllm.training import reopen
from jaxllm.training.sampling import cut_at, encode_prompt


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "directory of the run", required=True)
    flags.DEFINE_string("step", "latest", "checkpoint: latest, best (by validation) or a number")
    flags.DEFINE_multi_string("prompt", ["\n"], "text to go on from; may be given several times")
    flags.DEFINE_integer("tokens", 200, "tokens to draw, at most", lower_bound=1)
    flags.DEFINE_float("temperature", 0.8, "divides the logits; 0 takes the likeliest token")
    flags.DEFINE_integer("top_k", 0, "only the k likeliest tokens; 0: all")
    flags.DEFINE_float("top_p", 1.0, "only the likeliest tokens with this probability together")
    flags.DEFINE_integer("count", 1, "samples a prompt", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the drawing")


def main(file, overrides):
    """Restores the model, draws and prints."""
    if file:
        raise ConfigError("The run's own config is used. Leave --config out.")
    f = flags.FLAGS
    try:
        how = Sampling(f.temperature, f.top_k, f.top_p).check()
    except ValueError as error:
        raise ConfigError(f"--{error}") from None
    cli.start(reopen.load_config(f.workdir, overrides))
    trained = reopen.open_trained(f.workdir, overrides, f.step)
    tokenizer, model = trained.run.tokenizer, trained.run.model
    positions = model.config.positions
    prompts = [encode_prompt(tokenizer, text) for text in f.prompt for _ in range(f.count)]
    room = positions - max(map(len, prompts))
    if model.config.position == "learned" and f.tokens > room:
        raise ConfigError(
            f"--tokens={f.tokens} and the longest prompt exceed the model's {positions} learned "
            f"positions. Try --tokens={max(room, 1)}, or a shorter --prompt."
        )
    generate = jax.jit(make_generate(model, f.tokens, how, tokenizer.eos))
    drawn = generate(trained.params, left_pad(prompts), jax.random.key(f.seed))
    for number, (prompt, tokens) in enumerate(zip(prompts, jax.device_get(drawn), strict=True)):
        if len(prompts) > 1:
            print(f"--- {number + 1}")
        print(tokenizer.decode([*prompt, *cut_at(tokens, tokenizer.eos)]))
    return 0


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
