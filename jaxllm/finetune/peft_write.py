"""A trained adapter in the format of Hugging Face PEFT."""

import collections
import math
from typing import NamedTuple

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.finetune import parts
from jaxllm.finetune.peft_names import (
    OWN_TYPE,
    PROMPT_ROOT,
    ROOT,
    TASKS,
    endings,
    modules,
    projection,
    task_type,
)
from jaxllm.models import abstract_params
from jaxllm.models.weights import names
from jaxllm.models.weights.tensors import Tensor


class Written(NamedTuple):
    """An adapter as files.

    Attributes:
        config: the object of adapter_config.json.
        tensors: {name: Tensor}, float32.
    """

    config: dict
    tensors: dict


def write(method, section, c, family, own, head, taken=None):
    """Returns an adapter as PEFT has it, or as `Written` of our own where PEFT has no such kind.

    Args:
        method: `Method`.
        section: `config.finetune`, as a dict.
        c: ModelConfig.
        family: of `FAMILIES`.
        own: {path: array} of what is trained.
        head: path -> array of the base's, of a head that PEFT saves besides, trained or not.
        taken: {path: array} of what PiSSA took out of the base.

    Returns:
        `Written`.

    Raises:
        ConfigError: an adapter that modules of theirs cannot compute.
    """
    own = {path: np.asarray(x, np.float32) for path, x in own.items()}
    if method.kind not in KINDS:
        raise ConfigError(
            f"finetune.kind={method.kind!r} is no adapter: all of the model may have changed. "
            "Take the whole: python -m jaxllm.convert export, without --adapter."
        )
    if method.kind == "adapter":
        return _own_format(section, c, family, own)
    known, map_ = modules(family, c)
    prompts = method.kind in ("prompt", "prefix")
    fields, arrays = KINDS[method.kind](method, section, c, known, own, taken or {})
    base = abstract_params(c)
    fresh = [path for path in own if path in base]
    saved, heads = _heads(c, map_, fresh, lambda path: own.get(path, head(path)))
    both = [s for s in saved if any(name.startswith(f"{ROOT}{s}.") for name in arrays)]
    if both:
        raise ConfigError(
            f"{both[0]} has an adapter, and is saved whole besides; PEFT has the one or the other."
            "\n  Try --config.finetune.targets='layers/'."
        )
    config = {
        **fields,
        "task_type": task_type(c),
        "inference_mode": True,
        "modules_to_save": saved or None,
    }
    root = PROMPT_ROOT if prompts else ROOT
    tensors = {name: _tensor(x) for name, x in arrays.items()}
    return Written(config, tensors | {root + name: tensor for name, tensor in heads.items()})


def _tensor(array):
    array = np.ascontiguousarray(array, np.float32)
    return Tensor(array.shape, array.dtype, lambda index: array[tuple(index)])


def _heads(c, map_, fresh, read):
    """Returns (names of modules that are saved whole, {name: Tensor} of them)."""
    if "embed" in fresh and c.lm_head and c.tied:
        raise ConfigError(
            "config.init_fresh has 'embed', which is the head too (model.tied); PEFT would train a "
            "copy for the one and leave the other. Take the whole: python -m jaxllm.convert export."
        )
    saved = {name.rpartition(".")[0] for name, held in map_.names.items()
             if any(piece.path in fresh for piece in held)}  # fmt: skip
    tops = TASKS[c.task][1] if c.task in TASKS else ()
    there = {name.split(".")[0] for name in map_.names}
    saved = {name for name in saved if name.split(".")[0] not in tops} | (there & set(tops))
    found = {}
    for name, held in map_.names.items():
        if any(name.startswith(f"{module}.") for module in saved):
            one = map_._replace(names={name: held})
            arrays = {piece.path: np.asarray(read(piece.path), np.float32) for piece in held}
            found |= names.export(one, arrays, lambda _: np.float32)
    return sorted(saved), found


def _lora(method, section, c, known, own, taken):
    """Fields and arrays of low-rank matrices; the scale of a module is alpha / its rank."""
    part = next(part for part in method.parts if isinstance(part, parts.Lora))
    held = {}
    for module in known.values():
        targeted = [p for p in module.pieces if f"{projection(p)}/lora/a" in own]
        if targeted:
            _check_module(c, module, targeted, part.magnitude)
            held[module.name] = (module, _pair(module, targeted, own, taken))
    _check_all_found(held.values(), own)
    arrays, ranks = {}, {}
    for name, (module, (a_RI, b_OR)) in held.items():
        arrays[f"{ROOT}{name}.lora_A.weight"] = a_RI
        arrays[f"{ROOT}{name}.lora_B.weight"] = b_OR
        ranks[name] = len(a_RI)
        if part.magnitude:
            m = [own[f"{projection(p)}/lora/m"][p.at].reshape(-1) for p in module.pieces]
            arrays[f"{ROOT}{name}.lora_magnitude_vector"] = np.concatenate(m)
    usual = collections.Counter(ranks.values()).most_common(1)[0][0]
    named, rooted = endings(list(ranks), known), bool(section.get("rslora"))
    other = {named[name]: rank for name, rank in ranks.items() if rank != usual}
    fields = {
        "peft_type": "LORA",
        "r": usual,
        "lora_alpha": _alpha(part.scale, usual, rooted),
        "rank_pattern": other,
        "alpha_pattern": {name: _alpha(part.scale, rank, rooted) for name, rank in other.items()},
        "target_modules": sorted(set(named.values())),
        "lora_dropout": part.dropout,
        "use_rslora": rooted,
        "use_dora": part.magnitude,
        "fan_in_fan_out": any(module.flips for module, _ in held.values()),
        "bias": "none",
    }
    return fields, arrays


def _alpha(scale, rank, rooted):
    """The alpha with which a module of a rank has a scale."""
    alpha = scale * (math.sqrt(rank) if rooted else rank)
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha


def _pair(module, targeted, own, taken):
    """(A [rank, inputs], B [outputs, rank]) of a module; each projection has its own ranks."""
    rows, blocks = [], []
    for piece in targeted:
        path = projection(piece)
        pairs = [(own[f"{path}/lora/a"][piece.at], own[f"{path}/lora/b"][piece.at])]
        if f"{path}/lora/a" in taken:  # what it began with is no more in the base: take it off
            a, b = (np.asarray(taken[f"{path}/lora/{n}"], np.float32)[piece.at] for n in "ab")
            pairs.append((a, -b))
        for a, b in pairs:
            rank = a.shape[-1]
            rows.append(a.reshape(-1, rank).T)
            block = np.zeros((module.outputs, rank), np.float32)
            block[module.holds(piece)] = b.reshape(rank, -1).T
            blocks.append(block)
    return np.concatenate(rows), np.concatenate(blocks, axis=1)


def _check_module(c, module, targeted, magnitude):
    if any(len(piece.at) > 1 for piece in targeted):
        raise ConfigError(
            f"{module.name} is an expert's; in transformers all experts are one tensor, and no "
            "modules that PEFT could adapt. Train adapters of the attention alone "
            "(--config.finetune.targets='attn/'), or take the whole: python -m jaxllm.convert "
            "merge."
        )
    if magnitude and len(targeted) < len(module.pieces):
        missing = [projection(p) for p in module.pieces if p not in targeted]
        raise ConfigError(
            f"{module.name} is one matrix there, whose lengths DoRA trains all; here "
            f"{', '.join(missing)} of it has none. Train those too, or take the whole: "
            "python -m jaxllm.convert merge."
        )


def _check_all_found(held, own):
    """Raises ConfigError for an adapter of a projection that stands in no module."""
    found = {projection(p) for module, _ in held for p in module.pieces}
    marks = ("/lora/a", "/scale_out/w", "/scale_in/w")
    asked = {path.removesuffix(mark) for path in own for mark in marks if path.endswith(mark)}
    if asked - found:
        raise ConfigError(f"{min(asked - found)} has an adapter, and no module in their classes.")


def _ia3(method, section, c, known, own, taken):
    """Fields and arrays of factors: of a module's outputs, or of its inputs."""
    del method, section, taken
    held, forward = {}, []
    for module in known.values():
        outs = [p for p in module.pieces if f"{projection(p)}/scale_out/w" in own]
        ins = [p for p in module.pieces if f"{projection(p)}/scale_in/w" in own]
        if not outs and not ins:
            continue
        _check_module(c, module, [*outs, *ins], False)
        if ins and (outs or len(module.pieces) > 1):
            raise ConfigError(
                f"{module.name} would have factors of its outputs and of its inputs, or of those "
                "of a part of it; PEFT has one kind for a whole module. Take the whole: "
                "python -m jaxllm.convert merge."
            )
        if ins:
            forward.append(module.name)
            factor = own[f"{projection(ins[0])}/scale_in/w"][ins[0].at].reshape(1, -1)
        else:
            factor = np.ones((module.outputs, 1), np.float32)
            for piece in outs:
                w = own[f"{projection(piece)}/scale_out/w"][piece.at]
                factor[module.holds(piece)] = w.reshape(-1, 1)
        held[module.name] = (module, factor)
    _check_all_found(held.values(), own)
    named = endings(list(held), known)
    fields = {
        "peft_type": "IA3",
        "target_modules": sorted(set(named.values())),
        "feedforward_modules": sorted({endings(forward, known)[name] for name in forward}),
        "fan_in_fan_out": any(module.flips for module, _ in held.values()),
    }
    # A list of what is read forward has to be one of the targets, word by word.
    fields["target_modules"] = sorted({*fields["target_modules"], *fields["feedforward_modules"]})
    return fields, {f"{ROOT}{name}.ia3_l": factor for name, (_, factor) in held.items()}


def _prompt(method, section, c, known, own, taken):
    """Fields and the array of a soft prompt."""
    del section, known, taken
    if c.assembly == "encoder" and c.task not in TASKS:
        raise ConfigError(
            "PEFT puts soft prompts into encoders with the head of a task alone "
            f"(model.task={c.task!r})."
        )
    table_PD = next(x for path, x in own.items() if path.endswith("prompt/table"))
    # Theirs stands behind the scale of embeddings, ours before it.
    table_PD = table_PD * np.float32(c.width**0.5) if c.embed_scale else table_PD
    return _virtual("PROMPT_TUNING", c, method.lead, c.width, c.heads), {
        "prompt_embeddings": table_PD
    }


def _prefix(method, section, c, known, own, taken):
    """Fields and the array of keys and values: [tokens, layers · (key, value) · heads · width]."""
    del section, known, taken
    if c.assembly != "decoder" or c.task != "none":
        raise ConfigError(
            f"model.assembly={c.assembly!r}, task={c.task!r}: PEFT's prefixes stand in a decoder "
            "of text. Take an adapter of another kind: lora, prompt."
        )
    k, v = (_made(own, name) for name in "kv")  # [L, P, K, H]
    both = np.stack([k, v], axis=1).transpose(2, 0, 1, 3, 4)
    fields = _virtual("PREFIX_TUNING", c, method.lead, c.kv_heads * c.head_width, c.kv_heads)
    fields |= dict(prefix_projection=False, encoder_hidden_size=fields["token_dim"])
    return fields, {"prompt_embeddings": both.reshape(len(both), -1)}


def _made(own, name):
    """Keys or values [L, P, K, H] of a prefix, made of its source where it has one."""
    held = own[f"layers/attn/prefix/{name}"]
    if "prefix_source/table" not in own:
        return held
    table, w, b = (own[f"prefix_source/{n}"] for n in ("table", "w", "b"))
    source = np.tanh(table @ w + b)
    made = np.einsum("pr,lrkh->lpkh", source, held)
    return made + own[f"layers/attn/prefix/{name}_bias"][:, None]


def _virtual(kind, c, tokens, width, heads):
    return {
        "peft_type": kind,
        "num_virtual_tokens": tokens,
        "token_dim": width,
        "num_attention_heads": heads,
        "num_layers": c.layers,
        "num_transformer_submodules": 1,
    }


def _own_format(section, c, family, own):
    """Bottlenecks, which PEFT has not: our paths as names, our options as fields."""
    config = {"peft_type": OWN_TYPE, "family": family, "task_type": task_type(c)}
    config["finetune"] = section
    return Written(config, {path: _tensor(x) for path, x in own.items()})


KINDS = {
    "lora": _lora,
    "qlora": _lora,
    "ia3": _ia3,
    "prompt": _prompt,
    "prefix": _prefix,
    "adapter": None,
}
