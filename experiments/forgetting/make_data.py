"""Makes the data of tasks.json, small and always the same, from collections of text.

    python experiments/forgetting/make_data.py --data=DIR --out=experiments/forgetting/data

DIR holds summaries, translation, prose_en, code_python, multilang_clean and chat as .jsonl.zst with
the fields that are read below. Writes a file a task, and summaries_train.jsonl to fine-tune on: a
document stands on one side only, with all that begin alike.
"""

import argparse
import json
import pathlib
import random
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from jaxllm.context import records

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
    made["replay"] = replay(rows("prose_en"), rows("code_python"), rows("multilang_clean"), made)
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
    verses = [
        {"input": row["tgt"].strip(), "output": row["src"].strip()}
        for row in rows
        if row["source"] == "bible" and 40 <= len(row["tgt"]) <= 130 and len(row["src"]) <= 130
    ]
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


def questions(prose, chat):
    """Whom or what an article is about, of four; and questions on causes with two answers."""
    articles = []
    for row in prose:
        if row["source"] != "wikipedia-vital-summaries" or "\n\n" not in row["text"]:
            continue
        title, text = row["text"].split("\n\n", 1)
        first = re.split(r"(?<=[a-z)])\. ", text)[0]
        if re.search(rf"\b{re.escape(title)}\b", first) and 60 <= len(first) <= 260:
            hidden = re.sub(rf"\b{re.escape(title)}\b", "___", first, flags=re.IGNORECASE)
            articles.append((title, hidden.rstrip(".") + "."))
    chosen, lines = pick(sorted(set(articles)), COUNT + SHOTS), []
    names = [title for title, _ in chosen]
    for number, (title, hidden) in enumerate(chosen):
        options = random.Random(number).sample([x for x in names if x != title], 3)
        options.insert(number % 4, title)
        lines.append({"input": f"{hidden} What is ___?", "options": options, "answer": title})
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


def replay(prose, code, languages, made):
    """Text of the kinds that a general model has read, none of which a task asks about.

    Args:
        prose, code, languages: rows.
        made: {task: rows}; no text that begins like one of theirs is taken.
    """
    told = {text[:LIKE] for lines in made.values() for line in lines for text in line.values()
            if isinstance(text, str)}  # fmt: skip

    def of(rows, count):
        new = [row for row in rows if row["text"][:LIKE] not in told and len(row["text"]) > 50]
        return pick(new, count)

    old = [row for row in prose if row["source"] != "debian-descriptions"]
    found = of(old, 6_000) + of(code, 100) + of(languages, 1_500)
    return [{"text": row["text"]} for row in pick(found, len(found))]


if __name__ == "__main__":
    main()
