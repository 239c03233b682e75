"""Special tokens that the files of a Hugging Face folder name."""

import json

from jaxllm.tokenizers import base

FILES = ("special_tokens_map.json", "tokenizer_config.json")  # the latter wins


def named_tokens(files, names, folder=""):
    """Returns {"bos": text, …} of the special tokens that a folder's files name.

    Args:
        files: {name: bytes}; of them `FILES` are read.
        names: which to look for, such as "bos".
        folder: where they are from, with "/" at its end, for errors.

    Raises:
        TokenizerError: one of them is no JSON object, or a token is no text.
    """
    found = {}
    for name in FILES:
        if name not in files:
            continue
        try:
            record = dict(json.loads(files[name]))
        except (ValueError, TypeError, RecursionError) as error:
            raise base.TokenizerError(f"{folder}{name} is not a JSON object: {error}.") from error
        for special in names:
            value = {f"{special}_token": None, **record}[f"{special}_token"]
            if isinstance(value, dict) and "content" in value:
                value = value["content"]
            if isinstance(value, str):
                base.utf8(value)
                found[special] = value
    return found
