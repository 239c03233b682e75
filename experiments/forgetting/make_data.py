"""Makes the data of tasks.json and t5_tasks.json, always the same, from collections of text.

    python experiments/forgetting/make_data.py --data=DIR --out=experiments/forgetting/data

DIR holds summaries, translation, prose_en, code_python, multilang_clean, chat and classification as
.jsonl.zst with the fields that are read below. Writes a file a task; summaries_train.jsonl to
fine-tune on (a document stands on one side only, with all that begin alike); replay.jsonl, text for
a tenth of its rows; and what a small T5 is made from: t5_text.jsonl and t5_mixture.jsonl.
"""

import argparse
import json
import pathlib
import random
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from jaxllm.context import records
from jaxllm.evals import suite
from jaxllm.evals.general import part as halves

COUNT, SHOTS, TRAIN = 200, 60, 20_000
LIKE = 60  # characters: documents that share their first ones are of one project


def main():
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)

    def rows(name):
        file = pathlib.Path(args.data) / f"{name}.jsonl.zst"
        return [row for _, row in records.read(file, "--data")]

    made = summaries(rows("summaries"))
    made |= translation(rows("translation"))
    made |= questions(rows("prose_en"), rows("chat"))
    made |= texts(rows("prose_en"), rows("code_python"), rows("multilang_clean"))
    told = beginnings(made)
    made["replay"] = replay(rows("prose_en"), rows("code_python"), rows("multilang_clean"), told)
    made |= for_t5(rows("prose_en"), rows("translation"), rows("classification"), told)
    for name, lines in made.items():
        with open(out / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"{name}: {len(lines)}")


def pick(rows, count):
    """So many of the rows, always the same."""
    return random.Random(0).sample(rows, min(count, len(rows)))


def summaries(rows):
    """A package's description, and its synopsis by its maintainer."""
    groups = {}
    for row in rows:
        document, summary = row["document"].strip(), row["summary"].strip()
        if 150 <= len(document) <= 600 and 15 <= len(summary) <= 90:
            pair = {"input": " ".join(document.split()), "output": summary}
            groups.setdefault(document[:LIKE], []).append(pair)
    names = pick(sorted(groups), len(groups))
    test, shots, rest = names[:COUNT], names[COUNT : COUNT + SHOTS], names[COUNT + SHOTS :]
    train = [pair for name in rest for pair in groups[name]]
    return {
        "summaries": [groups[name][0] for name in test],
        "summaries_shots": [groups[name][0] for name in shots],
        "summaries_train": pick(train, TRAIN),
    }


def translation(rows):
    """Verses from Spanish to English; words from English to French, all that a dictionary has."""
    verses = [row for row in verses_of(rows) if len(row["input"]) >= 40 and longest(row) <= 130]
    words = []
    for row in rows:
        if row["source"] == "freedict-eng-fra" and re.fullmatch(r"[a-z]{3,}", row["src"]):
            there = [re.sub(r"^\d+\.\s*", "", part).strip() for part in row["tgt"].split(",")]
            if all(re.fullmatch(r"[\w' -]+", word) for word in there):
                words.append({"input": row["src"], "output": there})
    chosen, words = pick(verses, COUNT + SHOTS), pick(words, COUNT + SHOTS)
    return {
        "spanish": chosen[:COUNT],
        "spanish_shots": chosen[COUNT:],
        "french_words": words[:COUNT],
        "french_words_shots": words[COUNT:],
    }


def verses_of(rows):
    """All verses of the Bible, Spanish with English."""
    found = [row for row in rows if row["source"] == "bible"]
    return [{"input": row["tgt"].strip(), "output": row["src"].strip()} for row in found]


def longest(row):
    """Characters of the longer side of a pair."""
    return max(len(row["input"]), len(row["output"]))


def articles_of(prose):
    """[(title, first sentence of an encyclopaedia's article with the title blanked)], in order."""
    found = set()
    for row in prose:
        if row["source"] != "wikipedia-vital-summaries" or "\n\n" not in row["text"]:
            continue
        title, text = row["text"].split("\n\n", 1)
        first = re.split(r"(?<=[a-z)])\. ", text)[0]
        if re.search(rf"\b{re.escape(title)}\b", first) and 60 <= len(first) <= 260:
            hidden = re.sub(rf"\b{re.escape(title)}\b", "___", first, flags=re.IGNORECASE)
            found.add((title, hidden.rstrip(".") + "."))
    return sorted(found)


def asked(articles):
    """Questions which of four titles each article has."""
    names, lines = [title for title, _ in articles], []
    for number, (title, hidden) in enumerate(articles):
        options = random.Random(number).sample([x for x in names if x != title], 3)
        options.insert(number % 4, title)
        lines.append({"input": f"{hidden} What is ___?", "options": options, "answer": title})
    return lines


def questions(prose, chat):
    """Whom or what an article is about, of four; and questions on causes with two answers."""
    lines = asked(pick(articles_of(prose), COUNT + SHOTS))
    causes = []
    for row in chat:
        if row["source"] == "evals/quartz":
            said, answer = row["messages"][-2]["content"], row["messages"][-1]["content"].strip()
            found = re.fullmatch(r"(.+?)\s*\n\s*A:(.+)\n\s*B:(.+)", said.strip(), re.DOTALL)
            if found and answer in ("A", "B"):
                question, a, b = (" ".join(part.split()) for part in found.groups())
                if a != b:
                    one = {"input": question, "options": [a, b], "answer": "AB".index(answer)}
                    causes.append(one)
    causes = pick(causes, COUNT + SHOTS)
    return {
        "titles": lines[:COUNT],
        "titles_shots": lines[COUNT:],
        "causes": causes[:COUNT],
        "causes_shots": causes[COUNT:],
    }


def texts(prose, code, languages):
    """Held-out text: encyclopaedia, novels, Python's documentation and library, three languages."""

    def of(rows, **fields):
        fits = [r for r in rows if all(r[name] == value for name, value in fields.items())]
        return [{"text": row["text"]} for row in pick(fits, COUNT) if len(row["text"]) > 50]

    return {
        "encyclopaedia": of(prose, source="evals-wikipedia_5"),
        "novels": of(prose, source="austen"),
        "python_docs": of(prose, source="python3.11-doc"),
        "python": of(code),
        "french": of(languages, lang="fr", source="wikipedia-vital-summaries"),
        "german": of(languages, lang="de", source="fortunes"),
        "spanish_text": of(languages, lang="es", source="wikipedia-vital-summaries"),
    }


def beginnings(made):
    """How the texts of all tasks begin, inputs, outputs and titles alike."""
    return {text[:LIKE] for lines in made.values() for line in lines for text in line.values()
            if isinstance(text, str)}  # fmt: skip


def general(rows, told):
    """The rows of which no text begins like one of a task, without descriptions of packages."""
    rows = [row for row in rows if row.get("source") != "debian-descriptions"]
    return [row for row in rows if row["text"][:LIKE] not in told and len(row["text"]) > 50]


def replay(prose, code, languages, told):
    """Text of the kinds that a general model has read, none of which a task asks about."""
    found = pick(general(prose, told), 6_000) + pick(general(code, told), 100)
    found += pick(general(languages, told), 1_500)
    return [{"text": row["text"]} for row in pick(found, len(found))]


def for_t5(prose, pairs, classes, told):
    """What a small T5 is pre-trained on, and taught: four tasks, and to go on with a text.

    Returns:
        {"t5_text": [{"text"}], "t5_mixture": [{"input", "output"}], and a test of each task that
        tasks.json has not}.
    """
    texts = general(prose, told)
    verses = [row for row in verses_of(pairs) if row["input"][:LIKE] not in told]
    words = []
    for row in pairs:
        if row["source"] == "freedict-deu-eng":
            there = [re.sub(r"\[.*?\]", "", part).strip() for part in row["tgt"].split(",")]
            if all(there) and len(row["src"]) + len(there[0]) <= 100:
                words.append({"input": row["src"], "output": there})
    words, jokes = pick(words, len(words)), []
    for row in pick([row for row in classes if row["source"] == "sarcasm-headlines"], 11_000):
        answer = {"0": "no", "1": "yes"}[row["label"]]
        jokes.append({"input": row["text"], "options": ["yes", "no"], "answer": answer})
    titles = [row for row in asked(articles_of(prose)) if row["input"][:LIKE] not in told]
    taught = [(f"translate Spanish to English: {r['input']}", r["output"]) for r in verses] * 4
    taught += [
        (f"translate German to English: {r['input']}", r["output"][0]) for r in words[COUNT:]
    ]
    taught += [(f"{r['input']} {'; '.join(r['options'])}", r["answer"]) for r in titles] * 2
    taught += [(f"is it sarcastic? {r['input']}", r["answer"]) for r in jokes[COUNT:]]
    taught += [halves(suite.cut(row["text"], 360)[0], 0.5) for row in pick(texts, 20_000)]
    verses = [text for row in verses for text in row.values()]
    return {
        "t5_text": [{"text": text} for text in [row["text"] for row in texts] + verses],
        "t5_mixture": [{"input": a, "output": b} for a, b in pick(taught, len(taught))],
        "german_words": words[:COUNT],
        "sarcasm": jokes[:COUNT],
    }


if __name__ == "__main__":
    main()
