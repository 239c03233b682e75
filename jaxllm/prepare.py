"""Makes a clean, deduplicated, tokenized corpus of collected text.

    python -m jaxllm.prepare --config=configs/data/NAME.py --workdir=DIR [--config.…]

Reads every source, standardises, keeps the wanted languages, filters by quality, drops copies and
text of evaluation sets, masks personal data, trains a tokenizer and writes token shards. Killed,
the same command goes on where it was; with other settings it redoes what they change.

    python -m jaxllm.prepare --compare-tokenizers=DIR,DIR [--documents=FILES]

sets saved tokenizers side by side over the documents of files, or of the corpus that --config and
--workdir name; --json as data.

Exit status: 0 done; 2 a setting or the input is wrong.
"""

import sys

from absl import flags

from jaxllm import cli, settings
from jaxllm.config import ConfigError
from jaxllm.corpus import page, passes, tokenizer_page
from jaxllm.data import SOURCES
from jaxllm.tokenizers import TOKENIZERS

# Sections with a `kind`: (table of factories, fields of the section that are not the factory's).
KINDS = {
    "tokenizer": (TOKENIZERS, {}),
    "sources.*": (SOURCES, {}),
    "decontaminate.sources.*": (SOURCES, {}),
}


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", "", "directory of the corpus")
    flags.DEFINE_string("compare-tokenizers", "", "directories of tokenizers, joined by commas")
    flags.DEFINE_string("documents", "", "files that they are compared over; else the corpus")
    flags.DEFINE_bool("json", False, "print the comparison as one JSON object")


def main(file, overrides):
    """Makes the corpus, or compares tokenizers over it or over files."""
    f = flags.FLAGS
    directories = f["compare-tokenizers"].value
    if f.documents and not directories:
        raise ConfigError("--documents is for --compare-tokenizers=DIR,DIR; name them.")
    if f.documents:
        found = tokenizer_page.of_files(f.documents)
        print(tokenizer_page.compare(directories, found, f.json))
        return 0
    if directories and not file:
        raise ConfigError(
            "--compare-tokenizers needs text.\n  Try --documents=FILES, or --config and --workdir."
        )
    config, notes = settings.load(file, overrides, KINDS)
    if not f.workdir:
        raise ConfigError("No --workdir given. Try --workdir=corpora/mine.")
    for note in notes:
        print(f"note: {note}", file=sys.stderr if f.json else sys.stdout)
    corpus = passes.Corpus(config, f.workdir)
    if directories:
        print(tokenizer_page.compare(directories, tokenizer_page.of_corpus(corpus), f.json))
        return 0
    manifest = corpus.run()
    print(page.as_text(corpus, manifest))
    return 0


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
