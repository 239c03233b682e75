"""Makes a clean, deduplicated, tokenized corpus of collected text.

    python -m jaxllm.prepare --config=configs/data/NAME.py --workdir=DIR [--config.…]

Reads every source, standardises, keeps the wanted languages, filters by quality, drops copies and
text of evaluation sets, masks personal data, trains a tokenizer and writes token shards. Killed,
the same command goes on where it was; with other settings it redoes what they change.

    python -m jaxllm.prepare --explain=RUN --step=N

prints which documents the N-th step of a training run, in its work directory, was made of.

Exit status: 0 done; 2 a setting or the input is wrong.
"""

from absl import flags

from jaxllm import cli, settings
from jaxllm.config import ConfigError
from jaxllm.corpus import page, passes
from jaxllm.data import SOURCES
from jaxllm.tokenizers import TOKENIZERS
from jaxllm.training import origins

# Sections with a `kind`: (table of factories, fields of the section that are not the factory's).
KINDS = {
    "tokenizer": (TOKENIZERS, {}),
    "sources.*": (SOURCES, {}),
    "decontaminate.sources.*": (SOURCES, {}),
}


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", "", "directory of the corpus")
    flags.DEFINE_string("explain", "", "work directory of a training run, whose rows to explain")
    flags.DEFINE_integer("step", 1, "step of that run, from 1")


def main(file, overrides):
    """Makes the corpus, or explains a step."""
    if flags.FLAGS.explain:
        print(origins.page(flags.FLAGS.explain, flags.FLAGS.step))
        return 0
    config, notes = settings.load(file, overrides, KINDS)
    if not flags.FLAGS.workdir:
        raise ConfigError("No --workdir given. Try --workdir=corpora/mine.")
    for note in notes:
        print(f"note: {note}")
    corpus = passes.Corpus(config, flags.FLAGS.workdir)
    manifest = corpus.run()
    print(page.as_text(corpus, manifest))
    return 0


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
