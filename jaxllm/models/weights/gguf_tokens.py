"""Tokenizer files from the keys of a GGUF file, and back."""

import json

from jaxllm.config import near
from jaxllm.models.weights.tensors import WeightsError

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
# Pieces are tried at every cut: a very long one would take for ever.
TOKEN_CHARACTERS = 1_024
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


def _bytes(regex):
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": regex,
    }


def _split(pattern):
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


# {tokenizer.ggml.pre: steps that cut text before merging}, byte-level all.
PRE = {
    "gpt-2": [_bytes(True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(True)],
    "llama-bpe": [_split(_LETTERS + r"\p{N}{1,3}" + _REST), _bytes(False)],
    "qwen2": [_split(_LETTERS + r"\p{N}" + _REST), _bytes(False)],
    "tekken": [_split(_TEKKEN), _bytes(False)],
    "default": [*map(_split, _DEFAULT), _bytes(False)],
}
_SAME = {
    **dict.fromkeys(("phi-2", "olmo", "mpt", "jais", "trillion"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "dbrx", "falcon3", "smaug-bpe"), "llama-bpe"),
    **dict.fromkeys(("stablelm2", "deepseek-r1-qwen", "megrez"), "qwen2"),
}
_NORMALIZERS = {"qwen2": {"type": "NFC"}}
_WHOLE_PIECES = ("llama-bpe", "tekken")  # a word that is in the vocabulary is never cut
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}


def files(keys, path):
    """Makes the tokenizer's files.

    Args:
        keys: {key: value} of the header.
        path: of the GGUF file, for errors.

    Returns:
        {"tokenizer.json": bytes, "tokenizer_config.json": bytes}; {} for a file without
        tokenizer.

    Raises:
        WeightsError: a kind of tokenizer, or of cutting text, that is not known here; or keys
            that contradict each other.
    """
    kind = keys.get("tokenizer.ggml.model", "none")
    if kind == "none":
        return {}
    if kind not in ("gpt2", "llama"):
        raise WeightsError(
            f"{path}: tokenizer.ggml.model={kind!r} has no counterpart here. Known: gpt2, llama."
        )
    tokens, kinds = _vocabulary(keys, path)
    record = _gpt2(keys, tokens, path) if kind == "gpt2" else _llama(keys, tokens, kinds, path)
    record["added_tokens"] = [
        _added(i, token, kinds[i] != USER)
        for i, token in enumerate(tokens)
        if kinds[i] in (CONTROL, USER) or (kinds[i] == UNKNOWN and kind == "llama")
    ]
    config = _config(keys, tokens, path)
    adds_bos = kind == "llama" or _pre(keys, path) == "llama-bpe"
    config["add_bos_token"] = bool(keys.get("tokenizer.ggml.add_bos_token", adds_bos))
    config["add_eos_token"] = bool(keys.get("tokenizer.ggml.add_eos_token", False))
    record["post_processor"] = _ends(config, tokens)
    return {
        "tokenizer.json": json.dumps(record, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=1).encode(),
    }


def _vocabulary(keys, path):
    tokens = keys.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise WeightsError(f"{path}: tokenizer.ggml.tokens is missing or no list of strings.")
    kinds = keys.get("tokenizer.ggml.token_type")
    kinds = [NORMAL] * len(tokens) if kinds is None else [int(kind) for kind in kinds]
    if len(kinds) != len(tokens):
        raise WeightsError(
            f"{path}: {len(tokens):,} tokenizer.ggml.tokens but {len(kinds):,} token_type."
        )
    seen = set()
    for token in tokens:
        if token in seen or len(token) > TOKEN_CHARACTERS:
            wrong = "twice" if token in seen else f"with more than {TOKEN_CHARACTERS:,} characters"
            raise WeightsError(f"{path}: tokenizer.ggml.tokens holds {token[:80]!r} {wrong}.")
        seen.add(token)
    return tokens, kinds


def _pre(keys, path):
    if keys.get("tokenizer.ggml.model") != "gpt2":
        return ""
    name = keys.get("tokenizer.ggml.pre", "default")
    name = _SAME.get(name, name)
    if name not in PRE:
        known = sorted({*PRE, *_SAME})
        raise WeightsError(
            f"{path}: tokenizer.ggml.pre={name!r} has no counterpart here.{near(name, known)} "
            f"Known: {', '.join(known)}."
        )
    return name


def _record(model, **parts):
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        **dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder")),
        **parts,
        "model": model,
    }


def _model(tokens, merges, **more):
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": merges,
        **more,
    }


def _gpt2(keys, tokens, path):
    """Byte-level BPE."""
    name = _pre(keys, path)
    merges = [str(m).split(" ") for m in keys.get("tokenizer.ggml.merges", ())]
    wrong = next((m for m in merges if len(m) != 2), None)
    if wrong:
        raise WeightsError(f"{path}: tokenizer.ggml.merges holds {' '.join(wrong)!r}, no pair.")
    return _record(
        _model(tokens, merges, ignore_merges=name in _WHOLE_PIECES),
        normalizer=_NORMALIZERS.get(name),
        pre_tokenizer={"type": "Sequence", "pretokenizers": PRE[name]},
        decoder=_bytes(True),
    )


def _llama(keys, tokens, kinds, path):
    """SentencePiece's BPE: the merge whose result scores highest comes first."""
    scores = keys.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(tokens):
        raise WeightsError(f"{path}: tokenizer.ggml.scores must be as many as the tokens.")
    unknown = keys.get("tokenizer.ggml.unknown_token_id", 0)
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise WeightsError(f"{path}: tokenizer.ggml.unknown_token_id={unknown!r} is no token.")
    prefix = keys.get("tokenizer.ggml.add_space_prefix", True)
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    back = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _record(
        _model(
            tokens,
            _merges(tokens, kinds, [float(s) for s in scores]),
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        ),
        normalizer={"type": "Sequence", "normalizers": [*steps, mark]},
        decoder={"type": "Sequence", "decoders": back},
    )


def _merges(tokens, kinds, scores):
    """Lists the pairs of pieces that make a piece, best result first.

    SentencePiece goes from the left where two pairs make the same piece, which merges cannot say;
    the longer left part comes first, as in the files that transformers makes.
    """
    ids, found = {token: i for i, token in enumerate(tokens)}, []
    for i, token in enumerate(tokens):
        for cut in range(1, len(token) if kinds[i] == NORMAL else 0):
            left, right = ids.get(token[:cut]), ids.get(token[cut:])
            if left is not None and right is not None:
                found.append((-scores[i], i, -cut, left, right))
    return [[tokens[left], tokens[right]] for *_, left, right in sorted(found)]


def _added(i, token, special):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": i, "content": token, **flags, "special": special}


def _config(keys, tokens, path):
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for theirs, ours in _ROLES.items():
        i = keys.get(f"tokenizer.ggml.{theirs}_token_id")
        if i is None:
            continue
        if not isinstance(i, int) or not 0 <= i < len(tokens):
            raise WeightsError(
                f"{path}: tokenizer.ggml.{theirs}_token_id={i!r} is none of {len(tokens):,} tokens."
            )
        config[f"{ours}_token"] = tokens[i]
    template = keys.get("tokenizer.chat_template")
    more = {
        name: keys.get(f"tokenizer.chat_template.{name}")
        for name in keys.get("tokenizer.chat_templates", ())
    }
    named = {"default": template, **more} if template else more
    if any(not isinstance(text, str) for text in named.values()):
        raise WeightsError(f"{path}: tokenizer.chat_template is no text.")
    if more:
        template = [{"name": name, "template": text} for name, text in named.items()]
    return {**config, "chat_template": template} if template else config


def _ends(config, tokens):
    """What adds the first and last token, None where nothing does."""
    ends = [config.get(f"{n}_token") if config[f"add_{n}_token"] else None for n in ("bos", "eos")]
    if not any(ends):
        return None
    before, after = ([{"SpecialToken": {"id": t, "type_id": 0}}] if t else [] for t in ends)
    parts = [[*before, {"Sequence": {"id": name, "type_id": 0}}, *after] for name in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": parts[0],
        "pair": [*parts[0], *parts[1]],
        "special_tokens": {
            t: {"id": t, "ids": [tokens.index(t)], "tokens": [t]} for t in filter(None, ends)
        },
    }


def keys_of(files, rows):
    """Makes the keys of a GGUF file from a tokenizer's files; the inverse of `files`.

    Args:
        files: {"tokenizer.json": bytes, …}, as in a Hugging Face folder.
        rows: rows of the embedding table; ids beyond the tokenizer's are marked unused.

    Returns:
        {key: value}.

    Raises:
        WeightsError: no tokenizer.json, or one that GGUF readers have no name for.
    """
    if "tokenizer.json" not in files:
        raise WeightsError(
            "A GGUF file takes its tokenizer from a tokenizer.json, which this model has not.\n"
            "  Write it with tokenizer=False, or add one."
        )
    record = json.loads(files["tokenizer.json"])
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    model = record["model"]
    if model.get("type", "BPE") != "BPE":
        raise WeightsError(f"tokenizer.json is of type {model['type']!r}; GGUF files hold BPE.")
    tokens, kinds = _listed(record, rows)
    merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    keys = {"tokenizer.ggml.token_type": kinds, "tokenizer.ggml.tokens": tokens}
    if model.get("byte_fallback"):
        keys |= _keys_of_llama(record, tokens, merges, kinds)
    else:
        keys |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _name_of(record),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        }
    return keys | _keys_of_config(config, files, tokens)


def _listed(record, rows):
    """Returns (token of each id, its kind)."""
    by_id = {i: (token, NORMAL) for token, i in record["model"]["vocab"].items()}
    for added in record.get("added_tokens") or ():
        by_id[added["id"]] = (added["content"], CONTROL if added["special"] else USER)
    if by_id and max(by_id) >= rows:
        raise WeightsError(f"the tokenizer has id {max(by_id):,}, the embedding {rows:,} rows.")
    listed = [by_id.get(i, (f"[PAD{i}]", UNUSED)) for i in range(rows)]
    return [token for token, _ in listed], [kind for _, kind in listed]


def _keys_of_llama(record, tokens, merges, kinds):
    """Scores that put the merges in their order again; see `_merges`."""
    scores = dict.fromkeys(tokens, 0.0)
    for rank, pair in enumerate(merges):
        made = "".join(pair)
        scores[made] = scores[made] or -float(rank + 1)
    unknown = record["model"].get("unk_token")
    for i, token in enumerate(tokens):
        if token == unknown:
            kinds[i] = UNKNOWN
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[i] = BYTE
    text = json.dumps(record.get("normalizer")) + json.dumps(record.get("pre_tokenizer"))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [scores[token] for token in tokens],
        "tokenizer.ggml.add_space_prefix": '"Prepend"' in text or '"prepend_scheme": "' in text,
    }


def _steps(step):
    """The steps of a pre-tokenizer, with only what makes a difference."""
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [s for part in step["pretokenizers"] for s in _steps(part)]
    unlike = {"ByteLevel": {"add_prefix_space": True, "use_regex": True}}.get(step["type"], {})
    step = {**unlike, **step}
    step.pop("trim_offsets", None)
    return [step]


def _name_of(record):
    """The name that GGUF readers have for a way of cutting text."""
    found, normalizer = _steps(record.get("pre_tokenizer")), record.get("normalizer")
    for name, steps in PRE.items():
        same = [s for step in steps for s in _steps(step)] == found
        if same and normalizer == _NORMALIZERS.get(name):
            return name
    said = {name: record.get(name) for name in ("normalizer", "pre_tokenizer")}
    raise WeightsError(
        "tokenizer.json prepares text in a way that GGUF readers have no name for: "
        f"{json.dumps(said)[:300]}.\n  Known: {', '.join(PRE)}. Write the file with "
        "tokenizer=False, and hand tokenizer.json on beside it."
    )


def _keys_of_config(config, files, tokens):
    keys, ids = {}, {token: i for i, token in enumerate(tokens)}
    for theirs, ours in _ROLES.items():
        token = config.get(f"{ours}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token in ids:
            keys[f"tokenizer.ggml.{theirs}_token_id"] = ids[token]
    for name in ("add_bos_token", "add_eos_token"):
        if isinstance(config.get(name), bool):
            keys[f"tokenizer.ggml.{name}"] = config[name]
    template = config.get("chat_template")
    if "chat_template.jinja" in files:
        template = files["chat_template.jinja"].decode()
    if isinstance(template, list):
        named = {part["name"]: part["template"] for part in template}
        template = named.pop("default", None)
        keys |= {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
        keys["tokenizer.chat_templates"] = list(named)
    return keys | ({"tokenizer.chat_template": template} if template else {})
