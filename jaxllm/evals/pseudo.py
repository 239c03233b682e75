"""Labels of a model for texts that have none, of which it is sure: for self-training.

Source: Lee 2013, "Pseudo-label", with a threshold as Xie et al. 2020, arXiv:1911.04252, section 2.
"""

import json

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.data import examples
from jaxllm.data.errors import BadInput
from jaxllm.evals import tasks
from jaxllm.whole_files import replacing

AT_ONCE = 10_000  # texts


def check(config, confidence):
    """Raises ConfigError for a run that gives no classes, or no share of probability."""
    kinds = {section["kind"] for section in config.data.sources.values()}
    if config.objective.kind != "classify" or kinds != {"labelled"}:
        raise ConfigError(
            f"--label: objective.kind={config.objective.kind!r} with sources of kind "
            f"{', '.join(sorted(kinds))} gives texts no classes. Take a run of configs/classify.py."
        )
    if not 0 <= confidence < 1:
        raise ConfigError(
            f"--confidence={confidence} must be at least 0 and below 1.\n  Try --confidence=0.9."
        )


def label(trained, classes, path, out, confidence):
    """Writes the texts whose class a model is sure of, as JSONL that `labelled` reads.

    Each line has the fields of the run's own examples, and "confidence", the probability of the
    class.

    Args:
        trained: `reopen.Trained` of a classifier.
        classes: names of the classes, in the order of its outputs.
        path: files of texts, as of a source of kind "labelled".
        out: file to write.
        confidence: lowest probability of a class that is written.

    Returns:
        {"read", "kept", "classes": {name: kept}}.

    Raises:
        DataError: a row that cannot be read, unless the run's `data.bad_input` skips such.
    """
    config, run = trained.run.config, trained.run
    section = {"text": "text", "second": "", "label": "label"}
    section |= dict(next(iter(config.data.sources.values())))
    names = [section[name] for name in ("text", "second") if section[name]]
    source = examples.unlabelled(path=path, text=section["text"], second=section["second"])
    predict, read, kept = tasks.make_predict(run.model), 0, dict.fromkeys(classes, 0)
    with replacing(out) as file:
        for texts in _chunks(source.examples(BadInput(config.data.bad_input))):
            rows = examples.Unlabelled(texts, run.tokenizer, config.data.length, run.method.lead)
            batch = config.validate.batch
            logits, _ = tasks.collect(predict, rows, run.mesh, trained.params, batch)
            sure = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
            read += len(texts)
            for text, share in zip(texts, sure, strict=True):
                if share.max() < confidence:
                    continue
                name = classes[int(share.argmax())]
                line = dict(zip(names, text, strict=True)) | {section["label"]: name}
                line["confidence"] = round(float(share.max()), 4)
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
                kept[name] += 1
    return {"read": read, "kept": sum(kept.values()), "classes": kept}


def _chunks(found):
    """Yields lists of the texts of examples."""
    texts = []
    for example in found:
        texts.append(tuple(part.content for part in example.parts))
        if len(texts) == AT_ONCE:
            yield texts
            texts = []
    if texts:
        yield texts
