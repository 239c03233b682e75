"""Where projections lie in the modules of Hugging Face's classes, whose names PEFT uses."""

import math
from typing import NamedTuple

from jaxllm.models.weights import load

ROOT, PROMPT_ROOT = "base_model.model.", "base_model."  # PEFT wraps a model twice, or once
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
# In the metadata of WEIGHTS, where PEFT looks at "format" alone: of what it was trained over, and
# which of our parameters were trained whole besides.
DIGEST, FRESH = "jaxllm_base_digest", "jaxllm_trained_whole"
OWN_TYPE = "JAXLLM_BOTTLENECK"  # of what PEFT has not
# What a model is for, as PEFT calls it, and the modules that it always takes for trained heads.
TASKS = {
    "classify": ("SEQ_CLS", ("classifier", "score")),
    "regress": ("SEQ_CLS", ("classifier", "score")),
    "tag": ("TOKEN_CLS", ("classifier", "score")),
    "span": ("QUESTION_ANS", ("qa_outputs",)),
    "embed": ("FEATURE_EXTRACTION", ()),
}


class Module(NamedTuple):
    """A module of theirs that multiplies by a weight.

    Attributes:
        name: such as "model.layers.0.self_attn.q_proj".
        pieces: [`weights.names.Piece`] of our projections, end to end along the outputs.
        flips: whether its weight is stored as (inputs, outputs): GPT-2's Conv1D.
    """

    name: str
    pieces: list
    flips: bool

    @property
    def inputs(self):
        """How many inputs it has."""
        piece = self.pieces[0]
        return math.prod(piece.shape[slice(*piece.groups[0])])

    @property
    def outputs(self):
        """How many outputs it has, all projections together."""
        return self.pieces[0].width

    def holds(self, piece):
        """Returns the slice of the module's outputs that are a piece's."""
        first, last = piece.groups[piece.joined]
        return slice(piece.first, piece.first + math.prod(piece.shape[first:last]))


def projection(piece):
    """Path of the projection that a piece is the weight of."""
    return piece.path.removesuffix("/w")


def modules(family, c):
    """Returns ({name: `Module`} of all matrices, `weights.names.Map`) of a model.

    Args:
        family: of `FAMILIES`.
        c: ModelConfig.

    Raises:
        ConfigError: a family, or a model, that Hugging Face has no files of.
    """
    map_ = load.fill_map(family, c)
    found = {}
    for theirs, pieces in map_.names.items():
        name, end = theirs.rpartition(".")[::2]
        if end == "weight" and all(piece.path.endswith("/w") for piece in pieces):
            found[name] = Module(name, pieces, not pieces[0].turned)
    return found, map_


def task_type(c):
    """What a model is for, as PEFT calls it, or None."""
    if c.assembly == "encoder_decoder":
        return "SEQ_2_SEQ_LM"
    if c.assembly == "decoder" and c.task == "none":
        return "CAUSAL_LM"
    return TASKS[c.task][0] if c.task in TASKS else None


def endings(wanted, known):
    """Returns the shortest endings of names that match those wanted and no others.

    Args:
        wanted: names of modules.
        known: names of all modules.

    Returns:
        {name: its ending}; as PEFT reads a list of targets, a name is matched by what it ends with.
    """
    others, found = [name for name in known if name not in set(wanted)], {}
    for name in wanted:
        words = name.split(".")
        # "dense" is what any family calls any matrix, also those that we have no counterpart of.
        first = 2 if words[-1] == "dense" else 1
        tries = [".".join(words[-n:]) for n in range(first, len(words) + 1)]
        fits = (t for t in tries if not t[0].isdigit() and not any(o.endswith(t) for o in others))
        found[name] = next(fits, name)
    return found
