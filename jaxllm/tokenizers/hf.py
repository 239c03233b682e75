"""Hugging Face `tokenizer.json` files: loaded, or trained here without loss."""

import json
import pathlib
import re

import numpy as np
import tokenizers

from jaxllm.config import near
from jaxllm.tokenizers import base, chat, guard, hf_train
from jaxllm.tokenizers.named import FILES, named_tokens

TOKENIZER_FILE = "tokenizer.json"
SPECIALS = ("eos", "bos", "pad")
_TRAINED = {"eos": "</s>", "bos": "<s>", "pad": "<pad>"}
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


class HfTokenizer:
    """A tokenizer.json.

    Documents are plain text here: "<|endoftext|>" in one is 13 characters, not the token, and
    the file's own truncation, padding and added tokens are off.

    Args:
        content: bytes of the file.
        specials: {"eos" | "bos" | "pad": token as text, "" where absent}.
    """

    kind = "hf"
    template = None

    def __init__(self, content, specials):
        guard.check(self.kind, content)
        self._files, self._settings = {TOKENIZER_FILE: content}, specials
        self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        self._trusted = None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.eos, self.bos, self.pad = (
            self._special(name, specials[name], vocabulary) for name in SPECIALS
        )
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = {added[i].content: i for i in sorted(added) if added[i].special}
        self.fingerprint = base.fingerprint(self.kind, specials, self._files)

    @staticmethod
    def _special(name, token, vocabulary):
        if not token:
            return -1
        if token not in vocabulary:
            raise base.TokenizerError(
                f"{name}={token!r} is not in its vocabulary.{near(token, vocabulary)}"
            )
        return vocabulary[token]

    def encode(self, text):
        return np.array(self._encoding(self._tokenizer, text).ids, np.int32)

    def locate(self, text):
        return self.encode_spans(text)

    def encode_spans(self, text, specials=False):
        """Encodes a text and tells where each token stands in it.

        Args:
            text: what to encode.
            specials: special tokens in the text become their ids, as in transformers; only for
                text that is trusted.

        Returns:
            (ids int32[T], start and end in characters, int32[T, 2]).
        """
        tokenizer = self._trusting() if specials else self._tokenizer
        encoding = self._encoding(tokenizer, text)
        spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
        return np.array(encoding.ids, np.int32), spans

    def _trusting(self):
        """The tokenizer that parses special tokens; another one, since threads may share this."""
        if self._trusted is None:
            self._trusted = tokenizers.Tokenizer.from_str(self._files[TOKENIZER_FILE].decode())
            self._trusted.no_truncation()
            self._trusted.no_padding()
        return self._trusted

    @staticmethod
    def _encoding(tokenizer, text):
        base.utf8(text)
        try:
            return tokenizer.encode(text, add_special_tokens=False)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's panics are no Exception
            raise base.TokenizerError(f"tokenizer.json fails on this text: {error}") from error

    def decode(self, ids):
        return base.decode_runs(ids, self.vocab_size, self._decode)

    def _decode(self, ids):
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def pieces(self):
        record = json.loads(self._files[TOKENIZER_FILE])
        model = record["model"]
        unknown = model.get("unk_token")
        if model.get("unk_id") is not None:
            unknown = model["vocab"][model["unk_id"]][0]
        byte_level = '"ByteLevel"' in json.dumps(record.get("decoder"))
        special = set(self.specials.values())
        found = [base.Piece("", "special")] * self.vocab_size  # ids that are left out, too
        for text, i in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if i in special or text == unknown:
                found[i] = base.Piece(text, "unknown" if text == unknown else "special")
            elif byte_level:
                found[i] = hf_train.byte_level_piece(text)
            else:
                kind = "byte" if _BYTE_PIECE.fullmatch(text) else "text"
                found[i] = base.Piece(text.replace(base.SPACE_MARK, " "), kind)
        return found

    def save(self, directory):
        base.save(directory, self.kind, self._settings, self._files)


def make(
    texts,
    *,
    path="",
    eos="",
    bos="",
    pad="",
    algorithm="byte_bpe",
    vocab_size=32_000,
    specials=(),
    digits=3,
):
    """Loads a tokenizer.json, or trains one on `texts`.

    Args:
        texts: () -> iterator of str, to train on; read twice by "bpe".
        path: the file, or the directory that holds it; "" trains.
        eos, bos, pad: special tokens as text, such as "</s>"; "" reads them from the
            tokenizer_config.json or special_tokens_map.json beside the file, if there is one, and
            is "</s>", "<s>", "<pad>" of a trained one. They may be among `specials`.
        algorithm: "byte_bpe", "bpe" (over characters, rare ones as bytes), "unigram" or
            "wordpiece" (both over bytes). All lossless.
        vocab_size: ids of a trained tokenizer, bytes and special tokens included.
        specials: further special tokens of a trained one, such as ("<|im_start|>",); no text
            produces them.
        digits: most digits in a piece of a trained one; 0 for any number of them.

    Raises:
        TokenizerError: no such file, a damaged one, a special token it does not have, or texts
            and options that nothing can be trained with.
    """
    given = {"eos": eos, "bos": bos, "pad": pad}
    if not path:
        named = {name: given[name] or _TRAINED[name] for name in SPECIALS}
        tokens = base.special_tokens([*named.values(), *specials])
        return HfTokenizer(hf_train.train(texts, algorithm, vocab_size, tokens, digits), named)
    base.refuse_specials(specials, path)
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        path = path / TOKENIZER_FILE
    content = guard.read(path)
    paths = [path.parent / name for name in (*FILES, "chat_template.jinja")]
    files = {beside.name: guard.read(beside) for beside in paths if beside.is_file()}
    named = dict.fromkeys(SPECIALS, "") | named_tokens(files, SPECIALS, f"{path.parent}/")
    made = HfTokenizer(content, {name: given[name] or named[name] for name in SPECIALS})
    made.template = chat.of_files(files)
    return made


def restore(settings, files):
    """Rebuilds a stored Hugging Face tokenizer."""
    return HfTokenizer(files[TOKENIZER_FILE], {name: settings[name] for name in SPECIALS})
