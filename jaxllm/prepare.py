"""Makes a clean, deduplicated, tokenized corpus of collected text.

    python -m jaxllm.prepare --config=configs/data/NAME.py --workdir=DIR [--config.…]

--dry_run=1000 writes nothing and says what would be dropped of the first documents, and why.

Reads every source, standardises, keeps the wanted languages, filters by quality, drops copies and
text of evaluation sets, masks personal data, trains a tokenizer and writes token shards, with a
data card beside them (README.md). --export=array_record or --export=tfds writes the documents too.
Killed, the same command goes on where it was; with other settings it redoes what they change.

    python -m jaxllm.prepare --compare-tokenizers=DIR,DIR [--documents=FILES]

sets saved tokenizers side by side over the documents of files, or of the corpus that --config and
--workdir name; --json as data.

    python -m jaxllm.prepare --explain=RUN --step=N [--replay]

prints which documents the N-th step of a training run, in its work directory, was made of; and runs
it once more from the checkpoint before it.

Exit status: 0 done; 2 a setting or the input is wrong.
"""

import sys

from absl import flags

from jaxllm import cli
from jaxllm.config import ConfigError
from jaxllm.corpus import export, page, passes, preview, tokenizer_page
from jaxllm.corpus.executors import EXECUTORS
from jaxllm.corpus.quality import RULES
from jaxllm.data import SOURCES, DataError
from jaxllm.tokenizers import TOKENIZERS
from jaxllm.training import origins, records, replay

# Sections with a `kind`: (table of factories, fields of the section that are not the factory's).
KINDS = {
    "tokenizer": (TOKENIZERS, {}),
    "executor": (EXECUTORS, {}),
    "quality.*": (RULES, {"on": True}),
    "sources.*": (SOURCES, {}),
    "decontaminate.sources.*": (SOURCES, {}),
}


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", "", "directory of the corpus")
    flags.DEFINE_integer("dry_run", 0, "only say what would become of so many documents a source")
    flags.DEFINE_multi_enum("export", [], list(export.KINDS), "the documents also in this form")
    flags.DEFINE_string("compare-tokenizers", "", "directories of tokenizers, joined by commas")
    flags.DEFINE_string("documents", "", "files that they are compared over; else the corpus")
    flags.DEFINE_bool("json", False, "print the comparison as one JSON object")
    flags.DEFINE_string("explain", "", "work directory of a training run, whose rows to explain")
    flags.DEFINE_integer("step", 1, "step of that run, from 1")
    flags.DEFINE_bool("replay", False, "also run that step once more, from the checkpoint before")


def main(file, overrides):
    """Makes the corpus, compares tokenizers over it or over files, or explains a step."""
    f = flags.FLAGS
    directories = f["compare-tokenizers"].value
    if f.explain:
        print(origins.page(f.explain, f.step))
        if f.replay:
            cli.start(records.load_config(f.explain))
            print(replay.page(f.explain, f.step))
        return 0
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
    if not file:
        raise ConfigError("No config given. Try --config=configs/data/text.py.")
    config, notes = cli.load_with(file, overrides, KINDS, "sources", "configs/data/text.py")
    if f.dry_run:
        print(preview.as_text(preview.run(config, f.dry_run)))
        return 0
    if not f.workdir:
        raise ConfigError("No --workdir given. Try --workdir=corpora/mine.")
    for note in notes:
        print(f"note: {note}", file=sys.stderr if f.json else sys.stdout)
    for kind in f.export:
        export.library(kind)  # before the work, not after
    corpus = passes.Corpus(config, f.workdir)
    if directories:
        print(tokenizer_page.compare(directories, tokenizer_page.of_corpus(corpus), f.json))
        return 0
    try:
        manifest = corpus.run()
        print(page.as_text(corpus, manifest))
        for kind in f.export:
            print(f"  {export.write(corpus, kind)}")
    except OSError as error:  # a full disk, a folder that may not be written to
        raise DataError(
            f"{error}.\n  What is finished stands; the same command goes on from there."
        ) from error
    return 0


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
