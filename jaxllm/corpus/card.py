"""The data card of a corpus: README.md beside its manifest, made of nothing but the manifest.

Made again it is the same to the byte; it says nothing of when or how fast the corpus was made.
"""

import json
import pathlib

from jaxllm.corpus import pictures, record, tasks
from jaxllm.whole_files import replacing

NAME = "README.md"
_FILES = 20  # of a source that are listed
_REASONS = 12  # of each stage
_EXAMPLES = 4  # of each stage
_ALTS = {
    "lengths": "Documents by length, as read and of the corpus",
    "languages": "Documents by language",
    "dropped": "Documents dropped, by reason",
    "copies": "Groups of copies by size",
}


def write(manifest, directory):
    """Writes the card of a corpus and, where matplotlib is installed, its pictures.

    Args:
        manifest: of the corpus.
        directory: of the corpus.
    """
    drawn = pictures.draw(manifest, directory)
    with replacing(pathlib.Path(directory) / NAME) as file:
        file.write(as_text(manifest, drawn).encode())


def as_text(manifest, drawn):
    """Returns the card.

    Args:
        manifest: of the corpus.
        drawn: {name: file} of its pictures, None where they could not be drawn.
    """
    shown = {name: f"![{_ALTS[name]}]({file})" for name, file in (drawn or {}).items()}
    parts = [
        _head(manifest),
        _sources(manifest["sources"]),
        _stages(manifest, shown),
        _examples(manifest),
        _languages(manifest, shown),
        _private(manifest),
        _copies(manifest["copies"], shown),
        _splits(manifest),
        _made(manifest),
    ]
    if drawn is None:
        parts.append(
            "## Pictures\n\nNone: matplotlib is not installed. For pictures of the lengths, the "
            "languages, what was\ndropped and the groups of copies:\n\n"
            f"    {pictures.NEEDS}\n\nand run the same command again."
        )
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(manifest):
    card, splits = manifest["card"], manifest["splits"].values()
    names = sorted(manifest["sources"])
    title = card.get("title") or f"Corpus of {', '.join(names)}"
    total = {key: sum(part[key] for part in splits) for key in ("documents", "bytes", "tokens")}
    languages = [(name, count) for name, _, count in pictures.languages(manifest) if count]
    some = ", ".join(name for name, _ in languages[:12])
    more = f" and {len(languages) - 12} more" if len(languages) > 12 else ""
    code = manifest["code"]
    version = f"jaxllm {code['version']}" if "version" in code else f"commit {code['commit']}"
    changed = ", with changes that were not committed" if code.get("changed") else ""
    rows = [
        ("documents", f"{total['documents']:,}"),
        ("text", f"{_mb(total['bytes'])} MB of UTF-8"),
        ("tokens", f"{total['tokens']:,}, {_ratio(total['bytes'], total['tokens'])} bytes each"),
        ("languages", some + more or "not identified"),
        ("licence", card.get("licence") or "not stated: set --config.card.licence"),
        ("made by", version + changed),
    ]
    parts = [f"# {_line(title)}", card.get("notes", "").strip(), _table(("", ""), rows)]
    return "\n\n".join(part for part in parts if part)


def _sources(sources):
    rows, lists = [], []
    for name, one in sorted(sources.items()):
        rows.append(
            (name, one["kind"], *_sizes(one, ""), *_sizes(one, "_left"), f"`{one['sha256'][:16]}…`")
        )
        files = one.get("files", [])
        lists += [
            (name, file["file"], f"{file['bytes']:,}", f"`{file['sha256'][:16]}…`")
            for file in files[:_FILES]
        ]
        if files[_FILES:]:
            lists.append((name, f"and {len(files) - _FILES:,} more", "", ""))
    heads = ("source", "kind", "documents", "MB", "left", "MB left", "sha256 of the texts")
    parts = ["## Sources", _table(heads, rows, "ll>>>>l")]
    if lists:
        parts.append(_table(("source", "file", "bytes", "sha256"), lists, "ll>l"))
    parts.append("Hashes whole, and what of each source could not be read, are in manifest.json.")
    return "\n\n".join(parts)


def _sizes(one, which):
    return f"{one['documents' + which]:,}", _mb(one["bytes" + which])


def _stages(manifest, shown):
    rows = []
    for stage in manifest["stages"]:
        one = manifest["reports"][stage]
        counts, sizes = one["documents"], one["bytes"]
        lost = sum(one["dropped"].values())
        rows.append(
            (stage, f"{counts['in']:,}", f"{counts['out']:,}", _mb(sizes["in"]), _mb(sizes["out"]),
             f"{lost:,}", _part(lost, counts["in"]), _changed(one["changed"]))
        )  # fmt: skip
    heads = ("stage", "documents in", "out", "MB in", "MB out", "dropped", "", "changed")
    parts = ["## Stages", _table(heads, rows, "l>>>>>>l"), shown.get("lengths", "")]
    reasons = [
        (stage, reason, f"{count:,}", _part(count, manifest["reports"][stage]["documents"]["in"]))
        for stage, reason, count in pictures.dropped(manifest, _REASONS)
    ]
    parts.append("### What was dropped")
    if reasons:
        parts.append(_table(("stage", "reason", "documents", "of the stage's"), reasons, "ll>>"))
        parts.append(shown.get("dropped", ""))
    else:
        parts.append("Nothing.")
    return "\n\n".join(part for part in parts if part)


def _changed(changed):
    some = sorted(changed.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {what}" for what, count in some)


def _examples(manifest):
    found = {stage: [] for stage in manifest["stages"]}
    for stage, reason, _ in pictures.dropped(manifest):
        for one in manifest["reports"][stage]["examples"].get(reason, [])[:1]:
            if one["text"].strip():
                found[stage].append((stage, reason, one))
    some = [one for rows in found.values() for one in rows[:_EXAMPLES]]
    if not some:
        return ""
    parts = ["### Examples", f"The beginning of one document each. {_masked(manifest)}"]
    for stage, reason, one in some:
        parts.append(f"{stage}, {reason} (`{_line(one['id'])}`):\n\n{_excerpt(one['text'])}")
    return "\n\n".join(parts)


def _masked(manifest):
    policy = manifest["settings"]["privacy"]
    open_ = sorted(name for name, how in policy["sources"].items() if how == "off")
    if policy["policy"] == "off":
        masked = sorted(name for name, how in policy["sources"].items() if how != "off")
        if not masked:
            return "Personal data is shown as it is: config.privacy.policy is off."
        return f"Personal data is masked in those of {', '.join(masked)} only."
    return "Personal data is masked" + (f", not in those of {', '.join(open_)}." if open_ else ".")


def _excerpt(text):
    """One line as a block of code, in which nothing of Markdown or HTML works."""
    return "    " + _line(text)


def _languages(manifest, shown):
    rows = [(name, f"{found:,}", f"{left:,}") for name, found, left in pictures.languages(manifest)]
    if not rows:
        return "## Languages\n\nNot identified: config.language.on is false."
    some, parts = rows[:30], ["## Languages"]
    if rows[30:]:
        some.append((f"and {len(rows) - 30} more", "", ""))
    parts += [_table(("language", "found", "left"), some, "l>>"), shown.get("languages", "")]
    return "\n\n".join(part for part in parts if part)


def _private(manifest):
    one, policy = manifest["reports"]["privacy"], manifest["settings"]["privacy"]
    said = {
        "mask": "What is found is replaced by its kind, such as [EMAIL].",
        "drop": "Documents that hold any are dropped.",
        "off": "Nothing is looked for.",
    }
    lines = [said[policy["policy"]]]
    lines += [f"Of {name}: {how}." for name, how in sorted(policy["sources"].items())]
    if policy["policy"] != "off" or policy["sources"]:
        lines.append("Found are patterns and check digits, so names and addresses of homes stay.")
    rows = [
        (kind, f"{count:,}", f"{one['changed'].get(kind, 0):,}")
        for kind, count in sorted(one["counts"].items())
    ]
    table = _table(("kind", "found", "documents masked"), rows, "l>>") if rows else "Found: none."
    return "\n\n".join(["## Personal data", " ".join(lines), table])


def _copies(copies, shown):
    if not copies["groups"]:
        return "## Copies\n\nNo two documents were found alike."
    documents_ = sum(int(size) * count for size, count in copies["sizes"].items())
    groups = copies["groups"]
    parts = [
        "## Copies",
        f"{documents_:,} documents were copies of one another, in {groups:,} "
        f"group{'s' * (groups != 1)}; {copies['groups_with_near_copies']:,} of these with copies "
        "that are near, not\nequal. The first of each group stayed.",
        shown.get("copies", ""),
        "The beginnings of the first of the largest:",
    ]
    parts += [
        f"{one['documents']:,} documents (`{_line(one['id'])}`):\n\n{_excerpt(one['text'])}"
        for one in copies["largest"]
    ]
    return "\n\n".join(part for part in parts if part)


def _splits(manifest):
    rows = [
        (split, f"{one['documents']:,}", _mb(one["bytes"]), f"{one['tokens']:,}",
         _ratio(one["bytes"], one["tokens"]))
        for split, one in ((name, manifest["splits"][name]) for name in tasks.SPLITS)
    ]  # fmt: skip
    heads = ("split", "documents", "MB", "tokens", "bytes a token")
    return "\n\n".join(
        [
            "## Splits",
            "By a hash of a document's text, so that equal texts are always in the same.",
            _table(heads, rows, "l>>>>"),
        ]
    )


def _made(manifest):
    settings = json.dumps(manifest["settings"], indent=2, sort_keys=True, ensure_ascii=False)
    rows = [
        ("kind", manifest["tokenizer_kind"]),
        ("ids", f"{manifest['vocab_size']:,}"),
        ("fingerprint", f"`{manifest['tokenizer']}`"),
    ]
    block = "\n".join("    " + line for line in settings.splitlines())
    return "\n\n".join(
        [
            "## Tokenizer",
            _table(("", ""), rows),
            "## Settings",
            block,
            f"Hashes of all files are in manifest.json, times in {record.TIMINGS}.",
        ]
    )


def _table(heads, rows, sides=""):
    """A table of Markdown; ">" in `sides` sets a column to the right."""
    sides = sides or "l" * len(heads)
    lines = [heads, ["---:" if side == ">" else "---" for side in sides], *rows]
    return "\n".join(
        "| " + " | ".join(_line(str(cell)).replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )


def _line(text):
    return " ".join(text.split())


def _mb(count):
    return f"{count / 1e6:,.2f}"


def _ratio(size, count):
    return f"{size / count:.2f}" if count else "0"


def _part(count, whole):
    if not count or not whole:
        return ""
    return f"{100 * count / whole:.1f} %" if count / whole >= 0.0005 else "< 0.1 %"
