"""What a stage did to the documents of a shard, and the sum over shards."""

import collections
import time

from jaxllm.config import ConfigError

EXAMPLES = 5  # of each reason that are kept
EXCERPT = 240  # characters of an example
DONT_SURVIVE = (ConfigError, MemoryError, OSError)  # of the settings or the machine, not of a text


class Report:
    """Counts of one stage.

    Attributes:
        documents, bytes: {"in", "out"}; bytes of UTF-8.
        dropped: {reason: documents}.
        changed: {what: documents}.
        examples: {reason: [{"id", "text"}]}, the first few of each.
        counts: {what: number}, of whatever else a stage counts.
        lengths: {n: documents that come out with 2^n characters or more, below twice that}.
        seconds: of one core.

    Args:
        shown: function of a `Document` that gives the text that examples may show; None shows all.
    """

    def __init__(self, shown=None):
        self._shown = shown or (lambda document: document.text)
        self.documents, self.bytes = collections.Counter(), collections.Counter()
        self.dropped, self.changed = collections.Counter(), collections.Counter()
        self.counts, self.lengths = collections.Counter(), collections.Counter()
        self.examples, self.seconds = {}, 0.0

    def drop(self, reason, document, shown=True):
        """Counts a dropped document.

        Args:
            reason: a short class.
            document: `Document`.
            shown: whether its text may be shown.
        """
        self.dropped[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < EXAMPLES:
            text = self._shown(document)[:EXCERPT] if shown else ""
            examples.append({"id": document.id, "text": text})

    def measure(self, text):
        """Counts the length of a text that comes out."""
        self.lengths[str(max(len(text).bit_length() - 1, 0))] += 1

    def add(self, other):
        """Adds another shard's report, after this one's."""
        for name in ("documents", "bytes", "dropped", "changed", "counts", "lengths"):
            getattr(self, name).update(getattr(other, name))
        for reason, examples in other.examples.items():
            kept = self.examples.setdefault(reason, [])
            kept += examples[: EXAMPLES - len(kept)]
        self.seconds += other.seconds

    def as_dict(self):
        """The report as plain data."""
        known = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {name: dict(v) if isinstance(v, dict) else v for name, v in known.items()}


def from_dict(data):
    """The inverse of `Report.as_dict`."""
    report = Report()
    for name, value in data.items():
        if isinstance(getattr(report, name), collections.Counter):
            value = collections.Counter(value)
        setattr(report, name, value)
    return report


def run(stage, documents, shown=None):
    """Runs a stage; a document that it fails on is dropped, and the report says why.

    Args:
        stage: function ([Document], Report) -> [Document].
        documents: [Document].
        shown: as `Report` takes it.

    Returns:
        ([Document], Report).
    """
    report, start = Report(shown), time.process_time()
    try:
        left = stage(documents, report)
    except DONT_SURVIVE:
        raise
    except Exception:  # of some document; the others are none the worse for it
        report, left = Report(shown), []
        for document in documents:
            left += _alone(stage, document, report)
    report.seconds = time.process_time() - start
    for name, some in (("in", documents), ("out", left)):
        report.documents[name] = len(some)
        report.bytes[name] = sum(len(document.text.encode()) for document in some)
    for document in left:
        report.measure(document.text)
    return left, report


def _alone(stage, document, report):
    """[document] after a stage, or [] where it fails."""
    try:
        return stage([document], report)
    except DONT_SURVIVE:
        raise
    except Exception as error:
        report.drop(f"error: {type(error).__name__}", document, shown=False)
        return []
