"""Names of people and places in English text, by presidio over a spaCy model.

Slow (tens of kilobytes a second) and never complete: what a model takes for a name. Off unless
`config.privacy.entities` names kinds of them.
"""

import functools

from jaxllm.config import ConfigError

NEEDS = "pip install -r requirements-privacy.txt && python -m spacy download en_core_web_sm"
ENTITIES = ("PERSON", "LOCATION", "ORGANIZATION", "NRP")  # what spaCy's models tell apart
_PIECE = 50_000  # characters that are looked at together


def make(entities, model):
    """Returns a function of a text: (the text with placeholders, {kind: how many}).

    Args:
        entities: of ENTITIES.
        model: name of an installed spaCy model.

    Raises:
        ConfigError: an unknown kind, or presidio or the model is not installed.
    """
    unknown = set(entities) - set(ENTITIES)
    if unknown:
        raise ConfigError(
            f"config.privacy.entities has {min(unknown)!r}. Known: {', '.join(ENTITIES)}.\n"
            "  Try --config.privacy.entities=\"('PERSON','LOCATION')\"."
        )
    analyzer = _analyzer(model)

    def mask(text):
        parts, counts = [], {}
        for piece in _pieces(text):
            found = analyzer.analyze(piece, language="en", entities=list(entities))
            end = len(piece)
            for one in sorted(found, key=lambda one: -one.start):
                if one.end <= end:  # else it overlaps the one before
                    piece = f"{piece[: one.start]}[{one.entity_type}]{piece[one.end :]}"
                    counts[one.entity_type] = counts.get(one.entity_type, 0) + 1
                    end = one.start
            parts.append(piece)
        return "".join(parts), counts

    return mask


def _pieces(text):
    """Cuts a text after line ends where there are any."""
    while len(text) > _PIECE:
        cut = text.rfind("\n", 0, _PIECE) + 1 or _PIECE
        yield text[:cut]
        text = text[cut:]
    yield text


@functools.cache
def _analyzer(model):
    try:
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import NlpEngineProvider
        from presidio_analyzer.predefined_recognizers import SpacyRecognizer
        from spacy.util import is_package
    except ImportError:
        raise ConfigError(f"config.privacy.entities needs presidio. Try {NEEDS}.") from None
    if not is_package(model):  # or presidio would fetch it
        raise ConfigError(f"config.privacy.model={model!r} is not installed. Try {NEEDS}.")
    models = [{"lang_code": "en", "model_name": model}]
    engine = NlpEngineProvider(
        nlp_configuration={"nlp_engine_name": "spacy", "models": models}
    ).create_engine()
    # Its other recognizers ask the network for lists; `privacy` has patterns of its own.
    registry = RecognizerRegistry(
        recognizers=[SpacyRecognizer(supported_language="en")], supported_languages=["en"]
    )
    return AnalyzerEngine(nlp_engine=engine, registry=registry, supported_languages=["en"])
