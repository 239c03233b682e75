"""What simple counts reach on the very targets of a run's validation, beside the run; and a plot.

    python experiments/encoders/measure.py --plot=curves.png runs/bert runs/spans runs/spam …

Of runs that predict tokens: the best that any fixed distribution over tokens can do, the entropy of
the targets themselves; sentinels and ends are taken as known. Of classifiers: naive Bayes over the
counts of tokens of the training rows, add-one smoothing. One line of JSON a run.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from jaxllm import data, tokenizers
from jaxllm.training import records, setup

BATCH = 64


def batches(workdir, split):
    """Returns (config, tokenizer, list of batches of a split as validation reads them)."""
    place = pathlib.Path(workdir)
    config = records.load_config(place)
    tokenizer = tokenizers.load(place / "tokenizer")
    source = data.open_split(
        config.data, tokenizer, place / "data", split, config.seed,
        vocab=setup.model_vocab(config, tokenizer),
    )  # fmt: skip
    most = config.validate.batches if config.objective.kind == "lm" and split != "train" else 0
    size = config.validate.batch if split != "train" else BATCH
    found = []
    for index, batch in enumerate(source.epoch(size)):
        if most and index >= most:
            break
        found.append(batch)
    return config, tokenizer, found


def unigram(rows, text_ids):
    """Returns nats a target of the targets' own distribution; those of `text_ids` and up are free.

    Args:
        rows: batches with "targets" and "weight".
        text_ids: ids below it stand for text.
    """
    targets = np.concatenate([b["targets"][b["weight"] > 0] for b in rows])
    of_text = targets[targets < text_ids]
    counts = np.bincount(of_text)
    share = counts[counts > 0] / len(of_text)
    return float(-(share * np.log(share)).sum() * len(of_text) / len(targets))


def naive_bayes(train, held, vocab):
    """Returns (accuracy of naive Bayes, that of the commonest class) on `held`."""

    def bags(rows):
        counts, labels = [], []
        for batch in rows:
            real = batch["weight"] > 0
            for tokens, segment, label in zip(
                batch["tokens"][real], batch["segment"][real], batch["label"][real], strict=True
            ):
                counts.append(np.bincount(tokens[segment > 0], minlength=vocab))
                labels.append(label)
        return np.array(counts, np.float32), np.array(labels)

    (x, y), (held_x, held_y) = bags(train), bags(held)
    classes = np.unique(y)
    words = np.stack([x[y == c].sum(0) + 1 for c in classes])
    logp = np.log(words / words.sum(1, keepdims=True))
    prior = np.log([(y == c).mean() for c in classes])
    found = classes[np.argmax(held_x @ logp.T + prior, axis=1)]
    common = classes[np.argmax(prior)]
    return float((found == held_y).mean()), float((common == held_y).mean())


def measure(workdir):
    """Returns {"run", "loss" or "accuracy" at the end, "baseline", …} of a work directory."""
    config, tokenizer, held = batches(workdir, "validation")
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    validations = [line for line in lines if line["kind"] == "validation"]
    found = {"run": pathlib.Path(workdir).name, "step": validations[-1]["step"]}
    found |= {"loss": validations[-1]["loss"], "accuracy": validations[-1].get("accuracy")}
    found["curve"] = [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
    found["validation"] = [(line["step"], line["loss"]) for line in validations]
    if config.objective.kind == "lm":
        special = [*tokenizer.specials.values(), tokenizer.eos, tokenizer.bos, tokenizer.pad]
        first = min([i for i in special if i >= 0], default=tokenizer.vocab_size)
        found["unigram"] = unigram(held, first)
        found["unigram_all"] = unigram(held, 1 << 30)  # sentinels and ends as tokens like others
    else:
        _, _, train = batches(workdir, "train")
        found["naive_bayes"], found["commonest"] = naive_bayes(train, held, tokenizer.vocab_size)
        found["examples"] = [int(sum(b["weight"].sum() for b in part)) for part in (train, held)]
    return found


def plot(path, found):
    """Draws the training loss of runs that predict tokens over their unigram entropy."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for one in (one for one in found if "unigram" in one):
        steps, losses = zip(*one["curve"], strict=True)
        (line,) = axes.plot(steps, losses, label=f"{one['run']} (dashed: its unigram)")
        axes.axhline(one["unigram"], color=line.get_color(), linestyle="--", linewidth=0.8)
    axes.set(xlabel="updates", ylabel="nats a target", ylim=(1, 5))
    axes.legend()
    figure.savefig(path, dpi=90, bbox_inches="tight")


def main():
    """Measures the runs that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", default="")
    parser.add_argument("workdirs", nargs="+")
    args = parser.parse_args()
    found = [measure(workdir) for workdir in args.workdirs]
    for one in found:
        print(json.dumps({k: v for k, v in one.items() if k not in ("curve", "validation")}))
    if args.plot:
        plot(args.plot, found)


if __name__ == "__main__":
    main()
