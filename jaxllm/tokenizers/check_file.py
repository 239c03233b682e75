"""Parses a tokenizer file from standard input; run as a process of its own by `guard.check`.

Imports nothing of this package, so that it starts fast and runs from its path.
"""

import resource
import sys

MEMORY_BYTES = 8 << 30
SAMPLE = "A sample: naïve café, 東京, 😀\n\tend.  "


def main():
    """Loads the file, encodes a sample and decodes every id; any failure ends the process."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    content = sys.stdin.buffer.read()
    if sys.argv[1] == "hf":
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        tokenizer.decode(tokenizer.encode(SAMPLE, add_special_tokens=False).ids)
        tokenizer.decode(sorted(tokenizer.get_vocab().values()), skip_special_tokens=True)
    else:
        import sentencepiece

        tokenizer = sentencepiece.SentencePieceProcessor(model_proto=content)
        tokenizer.decode(tokenizer.encode(SAMPLE))
        tokenizer.decode(list(range(tokenizer.vocab_size())))


if __name__ == "__main__":
    main()
