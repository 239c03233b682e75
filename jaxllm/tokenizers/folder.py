"""Tokenizers of Hugging Face folders, from whichever of their files there are."""

import json

from jaxllm.tokenizers import base, guard
from jaxllm.tokenizers.base import TokenizerError
from jaxllm.tokenizers.hf import SPECIALS, TOKENIZER_FILE, HfTokenizer
from jaxllm.tokenizers.named import named_tokens
from jaxllm.tokenizers.sentencepiece import SentencePieceTokenizer

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
NAMED = (*SPECIALS, "unk", "sep", "cls", "mask")
# Classes that cut text as the files of their kind are read here, "" where none is named.
GPT2_CLASSES = ("", "GPT2Tokenizer", "RobertaTokenizer", "BartTokenizer", "PreTrainedTokenizerFast")
BERT_CLASSES = ("", "BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MPNetTokenizer")
# Their ids are not those of their model file.
SHIFTED_CLASSES = ("XLMRoberta", "Camembert", "MBart", "Barthez", "NllbToken", "M2M", "Pegasus")
BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


def from_folder(files):
    """Makes the tokenizer of a Hugging Face folder.

    Args:
        files: {name: bytes}. Of these the first that is there is read: tokenizer.json;
            tokenizer.model (SentencePiece); vocab.json and merges.txt (GPT-2's byte-level BPE);
            vocab.txt (BERT's WordPiece). Special tokens come from tokenizer_config.json,
            special_tokens_map.json and added_tokens.json.

    Returns:
        Tokenizer.

    Raises:
        TokenizerError: none of them is there, one is damaged, or the folder's class cuts text in
            a way that only its tokenizer.json would say.
    """
    named = named_tokens(files, NAMED)
    for name, content in files.items():
        if len(content) > guard.FILE_BYTES:
            raise TokenizerError(f"{name} has {len(content):,} of {guard.FILE_BYTES:,} bytes.")
    if TOKENIZER_FILE in files:
        return HfTokenizer(files[TOKENIZER_FILE], {n: named.get(n, "") for n in SPECIALS})
    config = _json(files, "tokenizer_config.json")
    kind = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    model = next((files[name] for name in SENTENCEPIECE_FILES if name in files), None)
    if model is not None:
        return _sentencepiece(files, config, kind, model, named)
    if "vocab.json" in files and "merges.txt" in files:
        record = _gpt2(files, config, kind, named)
    elif "vocab.txt" in files:
        named = {**BERT, **named}
        record = _bert(files, config, kind, named)
    else:
        raise TokenizerError(
            f"no tokenizer among {', '.join(sorted(files)) or 'no files'}: there must be a "
            "tokenizer.json, a tokenizer.model, vocab.json with merges.txt, or vocab.txt."
        )
    content = json.dumps(record, ensure_ascii=False).encode()
    return HfTokenizer(content, {name: named.get(name, "") for name in SPECIALS})


def _json(files, name):
    """Returns the object of a JSON file, {} where there is none."""
    try:
        record = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{name} is not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise TokenizerError(f"{name} is not a JSON object.")
    return record


def _lines(files, name):
    try:
        return files[name].decode().splitlines()
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{name} is no UTF-8 text: {error}.") from error


def _added(files, config):
    """Returns {token: (id, whether it is special)} of what was added to a vocabulary."""
    found = {}
    try:
        for token, i in _json(files, "added_tokens.json").items():
            found[token] = (int(i), True)
        for i, token in (config.get("added_tokens_decoder") or {}).items():
            found[token["content"]] = (int(i), bool(token.get("special", False)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TokenizerError(f"the added tokens of the folder are damaged: {error!r}.") from error
    return found


def _sentencepiece(files, config, kind, model, named):
    if kind.startswith(SHIFTED_CLASSES):
        raise TokenizerError(
            f"{kind} has other ids than its model file.\n  Save the folder once more with "
            "transformers' AutoTokenizer, which writes a tokenizer.json."
        )
    plain = SentencePieceTokenizer(model, False)
    listed = _added(files, config)
    if kind == "T5Tokenizer" and not listed:
        # Counted down from the end, as its class has it where the folder lists none.
        extra = config.get("extra_ids", 100)
        if not isinstance(extra, int) or not 0 <= extra <= 10_000:
            raise TokenizerError(f"tokenizer_config.json: extra_ids={extra!r} must be 0 to 10,000.")
        places = range(plain.vocab_size, plain.vocab_size + extra)
        listed = {f"<extra_id_{extra - 1 - k}>": (i, True) for k, i in enumerate(places)}
    added = {token: i for token, (i, _) in listed.items() if i >= plain.vocab_size}
    expected = range(plain.vocab_size, plain.vocab_size + len(added))
    if sorted(added.values()) != list(expected):
        raise TokenizerError(
            f"added tokens have the ids {sorted(added.values())[:5]}…; after the model's "
            f"{plain.vocab_size:,} pieces they must be {expected.start} and on."
        )
    ids = {**plain.ids(), **added}
    ends = {}
    for end in SPECIALS:
        if end in named and named[end] not in ids:
            raise TokenizerError(f"{end}_token={named[end]!r} is no token of the model file.")
        if end in named and ids[named[end]] != getattr(plain, end):
            ends[end] = ids[named[end]]
    return SentencePieceTokenizer(model, False, added, ends) if added or ends else plain


def _gpt2(files, config, kind, named):
    """tokenizer.json of vocab.json and merges.txt."""
    if kind not in GPT2_CLASSES:
        raise TokenizerError(
            f"{kind} may cut text otherwise than GPT-2.\n  Save the folder once more with "
            "transformers' AutoTokenizer, which writes a tokenizer.json."
        )
    vocabulary = _json(files, "vocab.json")
    if not all(isinstance(i, int) for i in vocabulary.values()):
        raise TokenizerError("vocab.json: ids must be whole numbers.")
    # The first line says the version; "#" may begin a merge, too.
    lines = [line for line in _lines(files, "merges.txt") if line.strip()]
    merges = [line.split(" ") for line in lines if not line.startswith("#version")]
    wrong = next((m for m in merges if len(m) != 2), None)
    if wrong:
        raise TokenizerError(f"merges.txt: {' '.join(wrong)!r} is no pair.")
    end = "<|endoftext|>"
    if "eos" not in named and end in vocabulary:
        named["eos"] = named["bos"] = end
    added = _specials(vocabulary, named, _added(files, config))
    prefix = bool(config.get("add_prefix_space", False))
    level = {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True}
    level["use_regex"] = True
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def _bert(files, config, kind, named):
    """tokenizer.json of vocab.txt."""
    if kind not in BERT_CLASSES:
        raise TokenizerError(
            f"{kind} may cut text otherwise than BERT.\n  Save the folder once more with "
            "transformers' AutoTokenizer, which writes a tokenizer.json."
        )
    vocabulary = {line: i for i, line in enumerate(_lines(files, "vocab.txt"))}
    return {
        "version": "1.0",
        "added_tokens": _specials(vocabulary, named, _added(files, config)),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": bool(config.get("tokenize_chinese_chars", True)),
            "strip_accents": config.get("strip_accents"),
            "lowercase": bool(config.get("do_lower_case", True)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": named["unk"],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    }


def _specials(vocabulary, named, added):
    """The added tokens of a tokenizer.json, in the order of their ids."""
    found = dict(added)
    for name, token in list(named.items()):
        if token in vocabulary:
            found.setdefault(token, (vocabulary[token], True))
        elif token not in added:
            if token != BERT.get(name):
                raise TokenizerError(f"{name}_token={token!r} is not in the vocabulary.")
            named[name] = ""  # BERT's own, which this vocabulary does without
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": i, "content": token, **flags, "special": special}
        for token, (i, special) in sorted(found.items(), key=lambda item: item[1])
        if base.utf8(token)
    ]
