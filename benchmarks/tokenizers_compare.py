"""SentencePiece BPE beside Hugging Face byte-level BPE: size, loss, speed, on real text.

    python -m benchmarks.tokenizers_compare [PROSE [MULTILINGUAL]]

Both are trained with 32,000 ids on PROSE and encode it; then each document of PROSE, of
MULTILINGUAL and of a few hard strings goes there and back. The files are lines of JSON with a
"text" and perhaps a "lang"; they default to those of ../shared/data. Five minutes on two cores.

Exit status: 0 the sizes are within 3 % and nothing is lost; 1 not; 2 there are no such files.
"""

import pathlib
import random
import sys
import time

from jaxllm import tokenizers
from jaxllm.corpus import tokenizer_page
from jaxllm.tokenizers import report

DATA = pathlib.Path("../shared/data")
DEFAULTS = (DATA / "prose_en.jsonl.zst", DATA / "multilang_clean.jsonl.zst")
IDS = 32_000
APART = 0.03
KINDS = {
    "sentencepiece": dict(kind="sentencepiece", algorithm="bpe", vocab_size=IDS),
    "byte_bpe": dict(kind="hf", algorithm="byte_bpe", vocab_size=IDS),
}


def hard():
    """Yields strings that tokenizers lose: controls, emoji, marks, white space, any code points."""
    yield from ("".join(map(chr, range(0xA0))), "\x00" * 9, "\ufeff\ufffe\uffff", " \n \r\n\t ")
    yield from ("👩\u200d👩\u200d👧 🏳️\u200d🌈 👍🏽 🇪🇺", "\u0301", "e\u0301\u0301 \u0301", "▁ ▁▁a ▂")
    yield from ("<s></s><pad><unk><0x41><0xE2>", "  both  ends  ", "\u2028\u2029\x85\x0b\x0c")
    draw = random.Random(0)
    for _ in range(2_000):
        codes = (draw.randrange(draw.choice((0x80, 0x800, 0xFFFF, 0x110000))) for _ in range(50))
        yield "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)


def timed(megabytes, function, *arguments):
    """Returns (result, what it took as text)."""
    wall, core = time.perf_counter(), time.process_time()
    result = function(*arguments)
    wall, core = time.perf_counter() - wall, time.process_time() - core
    return result, f"{wall:.0f} s, {megabytes / wall:.2f} MB/s, {megabytes / core:.2f} a core"


def encode(tokenizer, texts):
    """Encodes all and keeps nothing."""
    for text in texts:
        tokenizer.encode(text)


def main():
    paths = [pathlib.Path(path) for path in sys.argv[1:]]
    paths += DEFAULTS[len(paths) :]
    absent = [str(path) for path in paths if not path.is_file()]
    if absent:
        print(f"skipped: no {', '.join(absent)}. Name files: PROSE MULTILINGUAL.")
        return 2
    prose = list(tokenizer_page.of_files(str(paths[0])))
    texts = [text for text, *_ in prose]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    made = {}
    for name, section in KINDS.items():
        made[name], took = timed(megabytes, tokenizers.make, section, lambda: iter(texts))
        print(f"{name}: trained in {took}", flush=True)
        _, took = timed(megabytes, encode, made[name], texts)
        print(f"{name}: encoded in {took}", flush=True)
    sets = {
        "prose": prose,
        "multilingual": list(tokenizer_page.of_files(str(paths[1]))),
        "hard": [(text, "", repr(text)[:40]) for text in hard()],
    }
    lost = 0
    for name, documents in sets.items():
        reports = report.compare(made, documents)
        print(f"\n{name}\n{report.as_text(reports)}", flush=True)
        lost += sum(len(documents) - one.exact for one in reports.values())
        if name == "prose":
            one, other = (found.total.tokens for found in reports.values())
            apart = other / one - 1
    print(f"\nbyte_bpe beside sentencepiece: {apart:+.2%} tokens; {lost} documents lost")
    return int(abs(apart) > APART or lost > 0)


if __name__ == "__main__":
    sys.exit(main())
