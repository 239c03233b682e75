"""Tokenizers side by side over the documents of files or of a corpus."""

import json

from jaxllm import tokenizers
from jaxllm.config import ConfigError
from jaxllm.corpus import documents
from jaxllm.data import DataError, files, sources
from jaxllm.data.errors import BadInput
from jaxllm.tokenizers import report

_LABELS = ("language", "lang")  # fields of a line of JSON that may name its language
_SUFFIXES = (".jsonl", ".json", ".txt", ".md")


def compare(directories, found, as_json=False):
    """Returns the comparison of saved tokenizers, as text or as one JSON object.

    Args:
        directories: where they are, joined by commas.
        found: iterator of (text, language or "", name).

    Raises:
        ConfigError: no directory, or one twice.
        TokenizerError: one holds no tokenizer, or a damaged one.
    """
    names = [name.strip() for name in directories.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"--compare-tokenizers={directories} must name directories, each once.\n"
            "  Try --compare-tokenizers=corpora/a,corpora/b."
        )
    reports = report.compare({name: tokenizers.load_saved(name) for name in names}, found)
    if as_json:
        data = {name: report.as_dict(one) for name, one in reports.items()}
        return json.dumps(data, indent=1, ensure_ascii=False)
    return report.as_text(reports)


def of_files(paths):
    """Yields (text, language or "", place) of the documents of files.

    Args:
        paths: JSON lines with "text" and perhaps "language" or "lang", or text files, each one
            document; also as .gz or .zst; a directory or a glob, or several joined by commas.

    Raises:
        DataError: no such file, or a document that cannot be read.
    """
    for path in files.find(paths, _SUFFIXES):
        if {".jsonl", ".json"} & set(path.suffixes[-2:]):
            yield from _of_lines(path)
        else:
            for one in sources.text(path=str(path)).documents(BadInput()):
                yield one.text, "", one.where


def _of_lines(path):
    bad = BadInput()
    try:
        for number, line in files.lines(path, sources.LIMIT_BYTES):
            where = f"{path}:{number}"
            if line is None:
                bad("line too long", where, f"longer than {sources.LIMIT_BYTES:,} bytes")
            record = sources.parse_line(line, where, bad)
            text = sources.check_field(record, "text", where, bad).text
            labels = [record[field] for field in _LABELS if isinstance(record.get(field), str)]
            yield text, (labels or [""])[0], where
    except (files.CorruptError, files.TooLongError) as error:
        raise DataError(f"{path}: {error}.") from error


def of_corpus(corpus):
    """Yields (text, language or "", id) of a corpus's documents, which are made where missing.

    Args:
        corpus: `passes.Corpus`.
    """
    corpus.read()
    corpus.clean()
    corpus.find_duplicates()
    corpus.finish()
    for name in corpus.shards:
        for one in documents.read(corpus.final / f"{name}.jsonl.zst"):
            yield one.text, one.notes.get("language", ""), one.id
