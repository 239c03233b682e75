"""Evaluates a model with a head over a split: what it predicts of every example, and how well.

What is predicted is gathered on every host; metrics are then plain functions of arrays.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxllm import sharding
from jaxllm.evals import metrics

LONGEST_ANSWER = 30  # tokens, as in the code of BERT


def make_predict(model):
    """Returns predict(params, batch) -> outputs of the model's head; jitted."""

    def predict(params, batch):
        params = model.whole(params)
        return model.task(params, model.hidden(params, batch, None)[0], batch)

    return jax.jit(predict)


def collect(predict, source, mesh, params, batch):
    """Returns (outputs float32[rows, …], {name: array of all batches}) of a split in order.

    Args:
        predict: as `make_predict` returns.
        source: rows of examples, of one source.
        mesh: the mesh.
        params: parameters.
        batch: rows at once.
    """
    rows, outputs, arrays = sharding.local_rows(mesh, batch), [], []
    for local in source.epoch(batch, rows):
        found = predict(params, sharding.global_batch(mesh, rows, local, batch))
        if jax.process_count() > 1:
            found = multihost_utils.process_allgather(found, tiled=True)
            local = {n: multihost_utils.process_allgather(x, tiled=True) for n, x in local.items()}
        outputs.append(np.asarray(found, np.float32))
        arrays.append(local)
    joined = {name: np.concatenate([one[name] for one in arrays]) for name in arrays[0]}
    size = source.epoch_rows  # the last batch is filled with padding
    return np.concatenate(outputs)[:size], {name: x[:size] for name, x in joined.items()}


def classify(outputs, arrays, source, decode):
    """Returns accuracy, macro F1 and, of two classes, the area under the ROC curve."""
    del source, decode
    predicted, label = outputs.argmax(-1), arrays["label"]
    found = {
        "accuracy": float(np.mean(predicted == label)),
        "macro_f1": metrics.macro_f1(predicted, label, outputs.shape[-1]),
    }
    if outputs.shape[-1] == 2:
        found["auc"] = metrics.auc(outputs[:, 1] - outputs[:, 0], label == 1)
    return found


def regress(outputs, arrays, source, decode):
    """Returns the correlations of Pearson and Spearman."""
    del source, decode
    found, label = outputs[:, 0], arrays["label"]
    return {"pearson": metrics.pearson(found, label), "spearman": metrics.spearman(found, label)}


def tag(outputs, arrays, source, decode):
    """Returns accuracy by words, and precision, recall and F1 of entities where tags are BIO."""
    del decode
    names, predicted, real = source.manifest["classes"], outputs.argmax(-1), arrays["weight"] > 0
    found = {"accuracy": float(np.mean((predicted == arrays["targets"])[real]))}
    if any(name.startswith(("B-", "I-")) for name in names):
        said, gold = (
            [[names[i] for i in row[here]] for row, here in zip(x, real, strict=True)]
            for x in (predicted, arrays["targets"])
        )
        scores = metrics.entity_f1(said, gold)
        found |= dict(zip(("entity_precision", "entity_recall", "entity_f1"), scores, strict=True))
    return found


def span(outputs, arrays, source, decode):
    """Returns exact match and F1 of words of the answers, by question.

    Of the rows of a context the likeliest answer is taken. Where some questions of the split have
    none, "no answer" is predicted where the first mark is likelier in every row (Devlin et al.
    2019, section 4.3).
    """
    stored, best, none = source.stored, {}, {}
    for k, (row_T2, segment_T) in enumerate(zip(outputs, arrays["segment"], strict=True)):
        context, example = source.context(k)
        score, first, last = likeliest(row_T2[: segment_T.sum()], context)
        none[example] = min(none.get(example, np.inf), float(row_T2[source.lead].sum()))
        if score > best.get(example, (-np.inf,))[0]:
            best[example] = (score, decode(source.stretch(k, first, last)[1]))
    unanswerable = bool((np.array(stored.label)[:, 0] < 0).any())
    same, shared = [], []
    for example, (score, said) in best.items():
        first, last = (int(x) for x in stored.label[example])
        gold = decode(source.ids(first, last - first + 1)) if first >= 0 else ""
        said = "" if unanswerable and none[example] > score else said
        same.append(metrics.plain(said) == metrics.plain(gold))
        shared.append(metrics.word_f1(said, gold))
    return {"exact_match": float(np.mean(same)), "word_f1": float(np.mean(shared))}


def likeliest(logits_T2, context, longest=LONGEST_ANSWER):
    """Returns (score, first, last) of the likeliest answer within a context.

    Args:
        logits_T2: of being the first, and the last, token of the answer.
        context: (first column, last + 1).
        longest: tokens of an answer, at most.
    """
    a, b = context
    size = b - a
    if size < 1:
        return -np.inf, a, a
    score = logits_T2[a:b, 0][:, None] + logits_T2[a:b, 1][None, :]
    apart = np.arange(size)[None, :] - np.arange(size)[:, None]
    score = np.where((apart >= 0) & (apart < longest), score, -np.inf)
    first, last = np.unravel_index(np.argmax(score), score.shape)
    return float(score[first, last]), a + int(first), a + int(last)


# {objective: (outputs, arrays, source, decode) -> {metric: number}}.
TASKS = {"classify": classify, "regress": regress, "tag": tag, "span": span}


def evaluate(kind, model, params, source, mesh, tokenizer, batch):
    """Returns {metric: number} of a model over the rows of a split.

    Args:
        kind: of the objective, one of `TASKS`.
        model: `models.Model`.
        params: parameters.
        source: as `data.open_split` returns; of several sources each is told apart.
        mesh: the mesh.
        tokenizer: of the run.
        batch: rows at once.
    """
    predict, found = make_predict(model), {}
    for name, one in source.sources.items():
        outputs, arrays = collect(predict, one, mesh, params, batch)
        scores = TASKS[kind](outputs, arrays, one, tokenizer.decode)
        prefix = f"{name}/" if len(source.sources) > 1 else ""
        found |= {prefix + metric: value for metric, value in scores.items()}
    return found
