"""Generation: sampling, continuous batching, beams, drafts, constrained choices."""

from jaxllm.models.generate.beam import Beams
from jaxllm.models.generate.bits import NARROW
from jaxllm.models.generate.decoder import Decoder, decoder, ensemble
from jaxllm.models.generate.engine import Engine, Request
from jaxllm.models.generate.library import (
    How,
    Result,
    as_decoder,
    encode,
    ends_of,
    generate,
    make_engine,
    stream,
)
from jaxllm.models.generate.loop import Drawn, Plan, make_generate, pad
from jaxllm.models.generate.sampling import Sampling

__all__ = [
    "NARROW",
    "Beams",
    "Decoder",
    "Drawn",
    "Engine",
    "How",
    "Plan",
    "Request",
    "Result",
    "Sampling",
    "as_decoder",
    "decoder",
    "encode",
    "ends_of",
    "ensemble",
    "generate",
    "make_engine",
    "make_generate",
    "pad",
    "stream",
]
