"""Training tokenizer.json files: BPE over bytes or characters, unigram, WordPiece.

All four are lossless for every text, and the same texts give the same bytes in any process, with
any number of threads. Special tokens stand outside the model's own vocabulary, at its end, so no
text can produce them; texts are cut where they are written out, so no piece is learned that reads
like one.
"""

import collections
import io
import json

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxllm.tokenizers import base

BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
# WordPiece writes it before what goes on within a word. "##", as BERT has it, texts hold too.
CONTINUES = "\N{LOWER ONE EIGHTH BLOCK}"
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTED]
_BYTE_OF = {chr(byte): bytes([byte]) for byte in _PRINTED} | {
    chr(256 + i): bytes([byte]) for i, byte in enumerate(_HIDDEN)
}
BYTES = sorted(_BYTE_OF)
_COVERAGE = 0.9995  # part of all characters that the alphabet of "bpe" covers, as SentencePiece's
_WORD_CHARACTERS = 64  # WordPiece's time grows with the square of a word's length
_UNIGRAM_CHARACTERS = 1 << 16  # of a word; SentencePiece would drop long lines in silence
_BETWEEN = "\x01"  # words on a line for SentencePiece; no character of `BYTES`
_THREADS = 16  # part of the result: unigram sums its counts thread by thread
# Llama 3's pattern, with combining marks among the letters, without which most of the scripts of
# India are cut within syllables.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{M}\p{N}]?[\p{L}\p{M}]+|DIGITS"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train(texts, algorithm, vocab_size, specials, digits):
    """Trains a tokenizer.

    Args:
        texts: () -> iterator of str.
        algorithm: one of `ALGORITHMS`.
        vocab_size: ids in all, exactly.
        specials: special tokens as text, which get the last ids.
        digits: most digits in a piece; 0 for any number of them.

    Returns:
        bytes of a tokenizer.json.

    Raises:
        TokenizerError: an option that cannot be, no texts, or a vocabulary too large or too small
            for them.
    """
    if algorithm not in ALGORITHMS:
        raise base.TokenizerError(
            f"algorithm={algorithm!r} is unknown. Known: {', '.join(ALGORITHMS)}."
        )
    if digits < 0:
        raise base.TokenizerError(f"digits={digits} must be 0 or more, such as 3.")
    least, learn = ALGORITHMS[algorithm]
    least += len(specials)
    if vocab_size < least:
        raise base.TokenizerError(
            f"vocab_size={vocab_size} is too small: bytes and special tokens take {least:,} of "
            f"{algorithm}. Take a larger one, such as {2 * least}."
        )
    words = _words(digits)
    shell, model = learn(texts, vocab_size - len(specials), specials, words)
    vocabulary = model["vocab"]
    if not isinstance(vocabulary, dict):
        vocabulary = [piece for piece, _ in vocabulary]
    _check_size(vocab_size, len(vocabulary) + len(specials))
    for token in specials:
        if token in vocabulary:
            raise base.TokenizerError(
                f"special token {token!r} is a piece of text as well. Name it otherwise, such as "
                f"'<|{token}|>'."
            )
    record = json.loads(shell.to_str())
    record["model"] = model
    record["added_tokens"] = [
        dict(id=len(vocabulary) + i, content=token, single_word=False, lstrip=False)
        | dict(rstrip=False, normalized=False, special=True)
        for i, token in enumerate(specials)
    ]
    return json.dumps(record, ensure_ascii=False, indent=1).encode()


def byte_level_piece(text):
    """The `base.Piece` of a piece in characters of `BYTES`, others as they are."""
    content = b"".join(_BYTE_OF.get(c, c.encode()) for c in text.removeprefix(CONTINUES))
    try:
        return base.Piece(content.decode(), "text")
    except UnicodeDecodeError:
        return base.Piece(content.decode(errors="replace"), "byte")


def _check_size(asked, got):
    if got != asked:
        few = got < asked
        raise base.TokenizerError(
            f"vocab_size={asked} is too {'large' if few else 'small'} for these texts, which give "
            f"{got:,} pieces{'' if few else ' at least'}. Take another, such as {got}."
        )


def _words(digits):
    """The pre-tokenizer that cuts text into words, within which pieces stay."""
    many = rf"\p{{N}}{{1,{digits}}}" if digits else r" ?\p{N}+"
    return pre_tokenizers.Split(Regex(_PATTERN.replace("DIGITS", many)), "isolated")


def _byte_words(*cuts):
    """The same of bytes: cuts, then bytes as characters."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, byte_level])


def _byte_bpe(texts, size, specials, words):
    shell = Tokenizer(models.BPE())
    shell.pre_tokenizer, shell.decoder = _byte_words(words), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=BYTES, show_progress=False)
    shell.train_from_iterator(base.parts(texts, base.any_of(specials)), trainer)
    return shell, json.loads(shell.to_str())["model"]


def _bpe(texts, size, specials, words):
    """BPE over the frequent characters; others go in as bytes."""
    counts = collections.Counter()
    for text in texts():
        base.utf8(text)
        counts.update(text)
    alphabet, covered = [], 0
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= _COVERAGE * counts.total():
            break
        alphabet.append(character)
        covered += count
    # No piece may read like a byte's, and none may join what a rare character keeps apart.
    cut = base.any_of([*specials, "<0x", *(set(counts) - set(alphabet))])
    shell = Tokenizer(models.BPE(byte_fallback=True))
    shell.pre_tokenizer = words
    shell.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=size - 256, initial_alphabet=sorted(alphabet), show_progress=False
    )
    shell.train_from_iterator(base.parts(texts, cut), trainer)
    model = json.loads(shell.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    model["vocab"] = {piece: i for i, piece in enumerate([*BYTE_PIECES, *pieces])}
    model["byte_fallback"] = True
    return shell, model


def _wordpiece(texts, size, specials, words):
    shell = Tokenizer(models.WordPiece())
    shell.pre_tokenizer = _byte_words(words, _lengths())
    shell.decoder = decoders.Sequence([decoders.Replace(CONTINUES, ""), decoders.ByteLevel()])
    # Named here, or they would be numbered, and ties broken, in the order of a random hash.
    inner = [CONTINUES + byte for byte in BYTES]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        initial_alphabet=BYTES,
        special_tokens=inner,
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
    shell.train_from_iterator(base.parts(texts, base.any_of(specials)), trainer)
    model = json.loads(shell.to_str())["model"]
    model["max_input_chars_per_word"] = 4 * _WORD_CHARACTERS
    return shell, model


def _lengths():
    """The cut of words that are too long for WordPiece."""
    return pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{_WORD_CHARACTERS}}}"), "isolated")


def _unigram(texts, size, specials, words):
    """Unigram over bytes, its pieces found by SentencePiece.

    The library's own trainer gives other pieces each time: it takes words in the order of a
    randomly seeded hash, and its thresholds and ties depend on that.
    """
    shell = Tokenizer(models.Unigram())
    shell.pre_tokenizer, shell.decoder = _byte_words(words), decoders.ByteLevel()
    counts = collections.Counter()
    for part in base.parts(texts, base.any_of(specials)):
        found = shell.pre_tokenizer.pre_tokenize_str(part)
        counts.update(word for word, _ in found if len(word) <= _UNIGRAM_CHARACTERS)
    trained = sorted(_train_unigram(counts, size), key=lambda piece: -piece[1])
    # SentencePiece leaves out bytes that no text holds, and in long texts the rarest. They get the
    # penalty that it gives what is unknown, and the place of the least likely pieces.
    single = [piece for piece in trained if len(piece[0]) == 1]
    longer = [piece for piece in trained if len(piece[0]) > 1]
    absent = sorted(set(BYTES).difference(piece for piece, _ in single))
    least = min((score for _, score in trained), default=0.0) - 10
    longer = longer[: size - len(BYTES)]
    pieces = [*longer, *single, *([byte, least] for byte in absent)]
    return shell, dict(type="Unigram", unk_id=None, vocab=pieces, byte_fallback=False)


def _train_unigram(counts, size):
    """Returns [[piece, score]] of the words counted, `size` of them where they give so many."""
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_in_pairs(counts),
            input_format="tsv",
            pretokenization_delimiter=_BETWEEN,
            max_sentence_length=8 * _UNIGRAM_CHARACTERS,
            model_writer=model,
            model_type="unigram",
            vocab_size=size + 1,  # and the unknown token
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            split_by_unicode_script=False,
            split_by_number=False,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise base.TokenizerError(f"unigram cannot be trained on these texts: {error}") from error
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [[trained.id_to_piece(i), trained.get_score(i)] for i in range(1, len(trained))]


def _in_pairs(counts):
    """Yields lines of a word twice and half its count.

    SentencePiece looks for pieces among lines without regard to their counts: those of a word on
    a line of its own it would find once, and leave out as rare.
    """
    for word in sorted(counts):
        if counts[word] > 1:
            yield f"{word}{_BETWEEN}{word}\t{counts[word] // 2}"
        if counts[word] % 2:
            yield f"{word}\t1"


# {name: (ids that bytes take, what trains it)}.
ALGORITHMS = {
    "byte_bpe": (256, _byte_bpe),
    "bpe": (256, _bpe),
    "unigram": (256, _unigram),
    "wordpiece": (512, _wordpiece),
}
