"""What was done to a corpus, as a page to read."""


def as_text(corpus, manifest):
    """Returns the stages of a corpus as a table, and what came of it.

    Args:
        corpus: `passes.Corpus` that has run.
        manifest: as it returned.
    """
    lines = [f"  {'stage':<14}{'documents':>12}{'MB':>10}{'s':>9}{'MB/s a core':>13}  dropped"]
    for stage, one in corpus.reports.items():
        speed = one.bytes["in"] / 1e6 / one.seconds if one.seconds else 0
        dropped = ", ".join(f"{n:,} {why}" for why, n in one.dropped.most_common(4))
        lines.append(
            f"  {stage:<14}{one.documents['out']:>12,}{one.bytes['out'] / 1e6:>10.2f}"
            f"{one.seconds:>9.1f}{speed:>13.1f}  {dropped}"
        )
    for split, part in manifest["splits"].items():
        if part["documents"]:
            lines.append(
                f"  {split}: {part['tokens']:,} tokens of {part['documents']:,} documents, "
                f"{part['bytes'] / max(part['tokens'], 1):.2f} bytes a token"
            )
    return "\n".join([*lines, f"  {corpus.result}"])
