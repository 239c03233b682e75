"""What would become of the first documents of every source: nothing is written."""

import itertools

from jaxllm import data
from jaxllm.corpus import privacy, report, tasks
from jaxllm.corpus.documents import Document
from jaxllm.data.errors import BadInput

_WIDTH = 90  # characters of an example that are shown


def run(config, count):
    """Takes the first documents of every source through all stages that need no others.

    Args:
        config: ConfigDict of configs/data.
        count: documents of each source.

    Returns:
        {source: {stage: `report.Report`}}.
    """
    found = {}
    for name, source in data.make_sources(config, "sources").items():
        bad = BadInput(config.bad_input)
        first = [
            Document(one.where, name, one.text, {})
            for one in itertools.islice(source.documents(bad), count)
        ]
        stages = tasks.clean_stages(config) | {"privacy": privacy.make(config.privacy)}
        _, reports = tasks.run_stages(stages, first, privacy.shown(config.privacy))
        read = report.Report()
        read.documents.update({"in": len(first) + sum(bad.counts.values()), "out": len(first)})
        read.dropped.update(bad.counts)
        found[name] = {"read": read} | reports
    return found


def as_text(found):
    """Returns the reports of `run` as a page: what is dropped and changed, with examples."""
    lines = []
    for name, reports in found.items():
        lines.append(f"  {name}: {reports['read'].documents['out']:,} documents")
        for stage, one in reports.items():
            if stage != "read":
                left, came = one.documents["out"], one.documents["in"]
                changed = ", ".join(f"{n:,} {what}" for what, n in sorted(one.changed.items()))
                lines.append(f"    {stage:<12} {left:>8,} of {came:,} left" + (
                    f"; changed: {changed}" if changed else ""
                ))  # fmt: skip
            for reason, number in one.dropped.most_common():
                lines.append(f"      {number:>6,}  {reason}")
                for example in one.examples.get(reason, [])[:2]:
                    text = " ".join(example["text"].split())[:_WIDTH]
                    lines.append(f"              {text}" if text else "              (not shown)")
    return "\n".join(lines)
