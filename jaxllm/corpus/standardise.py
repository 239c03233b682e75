"""One form for all text: Unicode NFC, plain spaces and line ends, no controls, no mojibake.

Nothing that a reader would miss goes: letters, punctuation, emoji and their joiners stay.
"""

import re
import unicodedata

# All but tab and newline of the C0 and C1 controls, and what no text should hold: directions and
# byte order marks, noncharacters, private marks of tags.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff\u2060\u200b\u202a-\u202e\u2066-\u2069]"
)
_LINE_ENDS = re.compile("\r\n?|\x85|\u2028|\u2029")
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_TRAILING = re.compile(r"[ \t]+$", re.M)
_RUNS = re.compile(r"(?<=\S) {2,}(?=\S)")
_BLANK = re.compile(r"\n{3,}")
# UTF-8 that was read as Latin-1 or Windows-1252, of which there are telling pairs.
_MOJIBAKE = re.compile("[ÂÃâð][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")


def make(section):
    """Returns a stage that standardises text.

    Args:
        section: {"form": a Unicode normal form, or "" for none; "mojibake", "spaces": whether they
            are mended; "runs": whether spaces in a row within a line become one}.
    """
    form, runs = section.form, section.runs
    fix = _fixer() if section.mojibake else None

    def stage(documents, report):
        left = []
        for document in documents:
            text, notes = document.text, {}
            for name, change in _CHANGES.items():
                if (name == "spaces" and not section.spaces) or (name == "runs" and not runs):
                    continue
                text = _note(text, change(text), name, notes)
            if fix and _MOJIBAKE.search(text):
                text = _note(text, fix(text), "mojibake", notes)
            if form and not unicodedata.is_normalized(form, text):
                text = _note(text, unicodedata.normalize(form, text), "form", notes)
            text = _note(text, text.strip("\n"), "ends", notes)
            if not text.strip():
                report.drop("nothing left", document)
                continue
            report.changed.update(notes)
            if notes:
                document = document._replace(
                    text=text, notes=document.notes | {"standardised": sorted(notes)}
                )
            left.append(document)
        return left

    return stage


_CHANGES = {
    "line ends": lambda text: _LINE_ENDS.sub("\n", text),
    "controls": lambda text: _CONTROLS.sub("", text),
    "spaces": lambda text: _BLANK.sub("\n\n", _TRAILING.sub("", _SPACES.sub(" ", text))),
    "runs": lambda text: _RUNS.sub(" ", text),
}


def _note(text, new, name, notes):
    """Returns the new text, and notes under a name that it is another."""
    if new != text:
        notes[name] = notes.get(name, 0) + 1
    return new


def _fixer():
    import ftfy  # only here: an extra

    options = ftfy.TextFixerConfig(
        unescape_html=False, normalization=None, uncurl_quotes=False, fix_latin_ligatures=False,
        fix_character_width=False, fix_line_breaks=False, remove_terminal_escapes=False,
        remove_control_chars=False,
    )  # fmt: skip
    return lambda text: ftfy.fix_text(text, options)
