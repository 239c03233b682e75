"""SentencePiece: trained here without loss (BPE or unigram), or loaded from a .model file."""

import io

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_pb2

from jaxllm.tokenizers import base, guard

MODEL_FILE = "sentencepiece.model"
ALGORITHMS = ("bpe", "unigram")
CONTROLS = ("<pad>", "</s>", "<s>")
LINE_CHARACTERS = 1_000  # below the trainer's limit of 4,192 bytes, beyond which it drops lines


class SentencePieceTokenizer:
    """A SentencePiece model.

    Args:
        model: bytes of the .model file.
        lossless: trained here, with settings under which every text survives the round trip.
        added: {token: id} of special tokens beyond the model's, ids going on where it ends.
        ends: {"eos" | "bos" | "pad": id}, where it is not the model's own.
    """

    kind = "sentencepiece"
    template = None

    def __init__(self, model, lossless, added=None, ends=None):
        guard.check(self.kind, model)
        added, ends = dict(added or {}), dict(ends or {})
        self._files, self._settings = {MODEL_FILE: model}, {"lossless": lossless}
        # Only where there are any, so that tokenizers without keep their fingerprints.
        self._settings |= {n: v for n, v in (("added", added), ("ends", ends)) if v}
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._own = self._processor.vocab_size()
        self.vocab_size = self._own + len(added)
        self.eos = ends.get("eos", self._processor.eos_id())
        self.bos = ends.get("bos", self._processor.bos_id())
        self.pad = ends.get("pad", self._processor.pad_id())
        # Spaces are written so, and text that holds it goes in as bytes.
        mark = base.SPACE_MARK.encode()
        self._mark = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in mark] if lossless else []
        of = self._processor
        self.specials = {of.id_to_piece(i): i for i in range(self._own) if of.is_control(i)}
        self.specials |= added
        self.fingerprint = base.fingerprint(self.kind, self._settings, self._files)

    def encode(self, text):
        base.utf8(text)
        if not self._mark or base.SPACE_MARK not in text:
            return np.array(self._processor.encode(text), np.int32)
        first, *rest = text.split(base.SPACE_MARK)
        ids = self._processor.encode(first)
        for part in rest:
            ids += self._mark + self._processor.encode(part)
        return np.array(ids, np.int32)

    def locate(self, text):
        ids, places, begin = [], [], 0
        base.utf8(text)
        for number, part in enumerate(text.split(base.SPACE_MARK) if self._mark else [text]):
            if number:
                ids += self._mark
                places += [(begin - 1, begin)] * len(self._mark)
            # Places are in bytes; all but the last token of a character's bytes have none.
            lead = (np.frombuffer(part.encode() + b" ", np.uint8) & 0xC0) != 0x80
            character = np.cumsum(lead) - 1
            record = sentencepiece_pb2.SentencePieceText()
            record.ParseFromString(self._processor.encode(part, out_type="serialized_proto"))
            for piece in record.pieces:
                first, last = character[piece.begin], character[piece.end]
                ids.append(piece.id)
                last = max(last, first + self._processor.is_byte(piece.id))
                places.append((begin + first, begin + last))
            begin += len(part) + 1
        return np.array(ids, np.int32), np.array(places, np.int32).reshape(-1, 2)

    def decode(self, ids):
        return base.decode_runs(ids, self.vocab_size, self._decode)

    def _decode(self, ids):
        return self._processor.decode([i for i in ids if i < self._own])

    def pieces(self):
        added = sorted(self._settings.get("added", {}).items(), key=lambda item: item[1])
        own = [base.Piece(*self._piece(i)) for i in range(self._own)]
        return own + [base.Piece(token, "special") for token, _ in added]

    def ids(self):
        """Returns {piece as the model writes it: id}."""
        return {self._processor.id_to_piece(i): i for i in range(self._own)}

    def _piece(self, i):
        of = self._processor
        text = of.id_to_piece(i).replace(base.SPACE_MARK, " ")
        kinds = {"special": of.is_control, "unknown": of.is_unknown, "byte": of.is_byte}
        return text, next((kind for kind, holds in kinds.items() if holds(i)), "text")

    def save(self, directory):
        base.save(directory, self.kind, self._settings, self._files)


def make(texts, *, path="", vocab_size=8_000, algorithm="bpe", sample_lines=1_000_000, specials=()):
    """Loads a SentencePiece model, or trains one on `texts`.

    Args:
        texts: () -> iterator of str, to train on.
        path: a .model file to load; "" trains. Files from elsewhere may lose white space.
        vocab_size: ids of a trained model, bytes and special tokens (262) included.
        algorithm: "bpe" or "unigram".
        sample_lines: most lines to train on, drawn from all of the texts.
        specials: further special tokens of a trained model, such as ("<|im_start|>",); no text
            produces them.

    Raises:
        TokenizerError: no such file, a damaged one, no texts, or a vocabulary that cannot be.
    """
    if path:
        base.refuse_specials(specials, path)
        return SentencePieceTokenizer(guard.read(path), False)
    if algorithm not in ALGORITHMS:
        raise base.TokenizerError(
            f"algorithm={algorithm!r} is unknown. Known: {', '.join(ALGORITHMS)}."
        )
    controls = [name for name in base.special_tokens(specials) if name not in CONTROLS]
    model = _train(texts, vocab_size, algorithm, sample_lines, controls)
    return SentencePieceTokenizer(model, True)


def _train(texts, vocab_size, algorithm, sample_lines, controls):
    """Trains a model whose round trip loses nothing; the same texts give the same bytes."""
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts, base.any_of([*CONTROLS, *controls])),
            model_writer=model,
            model_type=algorithm,
            vocab_size=vocab_size,
            input_sentence_size=sample_lines,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            user_defined_symbols=["\n", "\n\n"],
            control_symbols=controls,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=3,
            unk_surface=base.UNKNOWN,
            num_threads=16,  # part of the result: unigram sums its counts thread by thread
            minloglevel=2,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise base.TokenizerError(
            f"SentencePiece cannot train {algorithm} with vocab_size={vocab_size}: {error}"
        ) from error
    return model.getvalue()


def _lines(texts, cut):
    """Yields the lines of texts, cut where they are too long for the trainer or `cut` matches."""
    for part in base.parts(texts, cut):
        for line in part.replace(base.SPACE_MARK, " ").split("\n"):
            for start in range(0, len(line), LINE_CHARACTERS):
                yield line[start : start + LINE_CHARACTERS]


def restore(settings, files):
    """Rebuilds a stored SentencePiece tokenizer."""
    more = {name: settings[name] for name in ("added", "ends") if name in settings}
    return SentencePieceTokenizer(files[MODEL_FILE], settings["lossless"], **more)
