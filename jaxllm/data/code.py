"""Source code: a directory of it, a document a file, with its language and licence."""

import os
import pathlib
import re

from jaxllm.config import near
from jaxllm.data import files, remote
from jaxllm.data.errors import DataError
from jaxllm.data.sources import Document, FileSource

LIMIT_BYTES = 1 << 20

LANGUAGES = {  # language: what its files' names end in, or whole names
    "assembly": ".asm .s .S",
    "c": ".c .h",
    "c#": ".cs",
    "c++": ".cc .cpp .cxx .c++ .hh .hpp .hxx .h++ .inl",
    "clojure": ".clj .cljs .cljc .edn",
    "cmake": ".cmake CMakeLists.txt",
    "css": ".css .scss .sass .less",
    "cuda": ".cu .cuh",
    "dart": ".dart",
    "dockerfile": ".dockerfile Dockerfile",
    "elixir": ".ex .exs",
    "erlang": ".erl .hrl",
    "f#": ".fs .fsi .fsx",
    "fortran": ".f .f90 .f95 .f03 .f08 .for",
    "go": ".go",
    "groovy": ".groovy .gradle",
    "haskell": ".hs .lhs",
    "html": ".html .htm",
    "java": ".java",
    "javascript": ".js .jsx .mjs .cjs",
    "julia": ".jl",
    "kotlin": ".kt .kts",
    "lisp": ".lisp .lsp .cl .el",
    "lua": ".lua",
    "makefile": ".mk Makefile makefile GNUmakefile",
    "markdown": ".md .markdown",
    "matlab": ".m",
    "nim": ".nim",
    "nix": ".nix",
    "ocaml": ".ml .mli",
    "pascal": ".pas .pp",
    "perl": ".pl .pm",
    "php": ".php",
    "powershell": ".ps1 .psm1",
    "prolog": ".pro",
    "protobuf": ".proto",
    "python": ".py .pyi .pyx",
    "r": ".r .R",
    "restructuredtext": ".rst",
    "ruby": ".rb .rake Rakefile Gemfile",
    "rust": ".rs",
    "scala": ".scala .sc",
    "scheme": ".scm .ss .rkt",
    "shell": ".sh .bash .zsh .fish",
    "solidity": ".sol",
    "sql": ".sql",
    "swift": ".swift",
    "tcl": ".tcl",
    "terraform": ".tf",
    "tex": ".tex .sty .cls .bib",
    "typescript": ".ts .tsx .mts .cts",
    "verilog": ".v .vh .sv .svh",
    "vhdl": ".vhd .vhdl",
    "visual basic": ".vb",
    "zig": ".zig",
}
_OF = {end: language for language, ends in LANGUAGES.items() for end in ends.split()}

_VENDORED = {
    *("node_modules", "bower_components", "vendor", "vendored", "third_party", "third-party"),
    *("thirdparty", "external", "externals", "site-packages", "dist-packages", "venv", ".venv"),
    *("env", ".tox", ".git", ".hg", ".svn", "__pycache__", "Pods", ".eggs", ".cargo", ".yarn"),
}
_MINIFIED = re.compile(r"[.-]min\.(js|mjs|css)$|\.bundle\.js$|\.map$")
_LONG_LINES = 500  # mean characters of a line of what nobody typed
_LICENCE = re.compile(r"(?i)^(licen[cs]e|copying|unlicense|copyright)([-._].*)?$")
_LICENCES = {  # SPDX identifier: words that only its text has; the first that fits counts
    "MPL-2.0": "mozilla public license version 2.0",
    "AGPL-3.0": "gnu affero general public license version 3",
    "LGPL-3.0": "gnu lesser general public license version 3",
    "LGPL-2.1": "gnu lesser general public license version 2.1",
    "GPL-3.0": "gnu general public license version 3",
    "GPL-2.0": "gnu general public license version 2",
    "Apache-2.0": "apache license version 2.0",
    "BSL-1.0": "boost software license",
    "Unlicense": "this is free and unencumbered software released into the public domain",
    "CC0-1.0": "cc0 1.0 universal",
    "ISC": "permission to use, copy, modify, and/or distribute this software for any purpose",
    "MIT": "permission is hereby granted, free of charge, to any person obtaining a copy",
    "BSD-3-Clause": "neither the name of",
    "BSD-2-Clause": "redistribution and use in source and binary forms",
}


def language_of(name):
    """Returns the language of a file by its name, "" where it is none of `LANGUAGES`."""
    return _OF.get(name) or _OF.get(pathlib.PurePosixPath(name).suffix, "")


def licence_of(text):
    """Returns the SPDX identifier of a licence's text, "" where it is none of the common ones."""
    words = " ".join(re.sub(r"\s*,?\s*version", " version", text[:20_000].lower()).split())
    return next((name for name, phrase in _LICENCES.items() if phrase in words), "")


def read_code(path, bad, root, licences, limit):
    """Yields the Document of a file of code; see `make`."""
    below = pathlib.PurePosixPath(os.path.relpath(path, root))
    if _VENDORED.intersection(below.parts[:-1]):
        bad.leave_out("vendored file", path)
        return
    if _MINIFIED.search(path.name):
        bad.leave_out("minified file", path)
        return
    size = path.stat().st_size
    if size > limit:
        bad("document too long", path, f"{size:,} bytes, more than {limit:,}; set limit")
        return
    data = files.whole(path, limit)
    if not data:
        bad.leave_out("empty file", path)
        return
    if b"\0" in data:
        bad.leave_out("binary file", path)
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad("undecodable bytes", f"{path}:{line}", f"{error.reason} (not UTF-8)")
        return
    if len(text) > _LONG_LINES * (text.count("\n") + 1):
        bad.leave_out("minified file", path)
        return
    notes = {"programming_language": language_of(path.name), **_licence(below, licences)}
    yield Document(text, str(path), notes)


def _licence(below, licences):
    """The notes on the licence file nearest above a file."""
    for folder in below.parents:
        if str(folder) in licences:
            file, name = licences[str(folder)]
            return {"licence_file": file, "licence": name}
    return {}


def _licences(root, found):
    """{folder below root: [licence file below root, its SPDX identifier or ""]}."""
    licences = {}
    for path in found:
        if _LICENCE.match(path.name) and path.is_file():
            below = path.relative_to(root)
            with path.open("rb") as file:
                name = licence_of(file.read(LIMIT_BYTES).decode("utf-8", "replace"))
            licences.setdefault(below.parent.as_posix(), [below.as_posix(), name])
    return licences


def make(*, path="", languages=(), limit=LIMIT_BYTES):
    """A directory of source code, a document a file, with its language and licence in its notes.

    Files are known by their names' ends (`LANGUAGES`). Vendored, minified, binary and empty files
    are counted and left out.

    Args:
        path: the directory.
        languages: those to keep, such as ("python", "c"); () for all.
        limit: most bytes of one file.

    Raises:
        DataError: no such directory, no code in it, or an unknown language.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise DataError(
                f"languages={languages!r}: {language!r} is unknown.{near(language, LANGUAGES)} "
                f"Known: {', '.join(LANGUAGES)}."
            )
    root = pathlib.Path(path).expanduser()
    if not path or remote.is_url(path) or not root.is_dir():
        raise DataError(f"path={path!r} is no directory (seen from {pathlib.Path.cwd()}).")
    root = root.resolve()
    found = sorted(files.walk(root))
    kept = languages or tuple(LANGUAGES)
    paths = [p for p in found if language_of(p.name) in kept and p.is_file()]
    if not paths:
        raise DataError(f"path={path!r} holds no code in {', '.join(languages) or 'any language'}.")
    options = {"root": str(root), "licences": _licences(root, found), "limit": limit}
    return FileSource("code", paths, read_code, options)
