"""Hugging Face PEFT's adapters as ours: what `config.finetune` and parameters they come to."""

import math
import re

import numpy as np

from jaxllm.config import near
from jaxllm.finetune.peft_file import MOST, number, read_tensor
from jaxllm.finetune.peft_names import CONFIG, OWN_TYPE, PROMPT_ROOT, ROOT, modules, projection
from jaxllm.models import abstract_params
from jaxllm.models.weights import names
from jaxllm.models.weights.tensors import WeightsError


def section_of(adapter, c, family):
    """Returns `config.finetune` of an adapter over a model.

    Args:
        adapter: `Adapter`.
        c, family: of the base.

    Returns:
        dict with "kind" and options.

    Raises:
        WeightsError: fields or names that are not those of an adapter of such a model.
    """
    return KINDS[adapter.kind][0](adapter, c, family)


def head_paths(adapter, c, family):
    """Returns {path of ours} of what an adapter saves whole, such as a head.

    Args:
        adapter, c, family: as in `section_of`, of the model with the adapter's head.
    """
    if adapter.kind == OWN_TYPE:
        return set(adapter.tensors) & abstract_params(c).keys()
    _, map_ = modules(family, c)
    found = {piece.path for name in _whole(adapter) for piece in map_.names.get(name, ())}
    return found if adapter.fresh is None else found & set(adapter.fresh)


def classes(adapter):
    """Returns how many classes the head in a file tells apart, or None without one."""
    rows = [
        tensor.shape[0]
        for name, tensor in adapter.tensors.items()
        if re.search(r"(^|\.)(classifier|classifier\.out_proj|qa_outputs)\.weight$", name)
        and len(tensor.shape) == 2
    ]
    return rows[0] if len(rows) == 1 else None


def fill(adapter, section, c, family, first, fresh):
    """Returns what is trained, {path: float32 array}, with the adapter's values in it.

    Args:
        adapter, c, family: as in `section_of`.
        section: what that returned.
        first: {path: array} of what the method begins with: it stays where the file has nothing.
        fresh: paths of what is trained whole.

    Raises:
        WeightsError: names or shapes that are not the model's, values that are no number.
    """
    own = {path: np.array(x, np.float32) for path, x in first.items()}
    KINDS[adapter.kind][1](adapter, section, c, family, own)
    if adapter.kind == OWN_TYPE:
        return own
    _, map_ = modules(family, c)
    tensors = _whole(adapter)
    wanted = {name: held for name, held in map_.names.items() if name in tensors}
    names.check(map_._replace(names=wanted), tensors)
    infos = abstract_params(c)
    for path in fresh:
        shape = infos[path].shape
        lacking = {p.name for p in map_.pieces[path].values()} - tensors.keys()
        if lacking:
            raise WeightsError(f"{adapter.origin}: {min(lacking)} is missing.")
        index = tuple(slice(None) for _ in shape)
        own[path] = names.read_slice(map_, tensors, path, index, shape).astype(np.float32)
    return own


def _whole(adapter):
    """{their name: Tensor} of what is saved whole beside the adapter's own tensors."""
    parts = re.compile(r"\.(lora_(A|B)\.weight|lora_magnitude_vector(\.weight)?|ia3_l)$")
    found = {}
    for name, tensor in adapter.tensors.items():
        if name == "prompt_embeddings" or parts.search(name):
            continue
        root = ROOT if adapter.kind in ("LORA", "IA3") else PROMPT_ROOT
        if not name.startswith(root):
            raise WeightsError(f"{adapter.origin}: {name!r} does not begin with {root!r}.")
        found[name.removeprefix(root)] = tensor
    return found


def _targets(adapter, c, family, ending):
    """Returns {name of a module: `Module`} of those that have a tensor with an ending.

    Raises:
        WeightsError: a name of no module of the base.
    """
    known, _ = modules(family, c)
    found = {}
    for name in adapter.tensors:
        if name.endswith(ending):
            module = name.removeprefix(ROOT).removesuffix(ending)
            if module not in known:
                raise WeightsError(
                    f"{adapter.origin}: {name} is of a module that this base has not."
                    f"{near(module, known)}"
                )
            if any(len(piece.at) > 1 for piece in known[module].pieces):
                raise WeightsError(f"{adapter.origin}: {name} is of an expert; not read here.")
            found[module] = known[module]
    if not found:
        raise WeightsError(f"{adapter.origin}: no tensor ends in {ending!r}.")
    return found


def _pattern(found):
    """A regular expression of the projections in modules."""
    paths = {projection(piece) for module in found for piece in module.pieces}
    return f"^({'|'.join(sorted(paths))})$"


def _lora_section(adapter, c, family):
    found = _targets(adapter, c, family, ".lora_A.weight")
    ranks = [adapter.tensors[f"{ROOT}{name}.lora_A.weight"].shape[0] for name in found]
    rank, rooted = max(ranks), bool(adapter.config.get("use_rslora"))
    if not 1 <= rank <= MOST:
        raise WeightsError(f"{adapter.origin}: a rank of {rank}; from 1 to {MOST} are read.")
    usual = number(adapter, "r", 1, MOST, whole=True)
    scale = _scale(number(adapter, "lora_alpha", 1e-9, 1e9), usual, rooted)
    return {
        "kind": "lora",
        "rank": rank,
        "alpha": scale * (math.sqrt(rank) if rooted else rank),
        "targets": _pattern(found.values()),
        "dropout": number(adapter, "lora_dropout", 0, 0.999, 0.0),
        "rslora": rooted,
        "dora": bool(adapter.config.get("use_dora")),
    }


def _scale(alpha, rank, rooted):
    return alpha / (math.sqrt(rank) if rooted else rank)


def _lora_fill(adapter, section, c, family, own):
    """Puts A, B and lengths in; a smaller rank leaves the rest of B zero."""
    del section
    rooted = bool(adapter.config.get("use_rslora"))
    usual = number(adapter, "r", 1, MOST, whole=True)
    alpha = number(adapter, "lora_alpha", 1e-9, 1e9)
    used = set()
    for name, module in _targets(adapter, c, family, ".lora_A.weight").items():
        start = f"{ROOT}{name}."
        rank = adapter.tensors[f"{start}lora_A.weight"].shape[0]
        said = _of_pattern(adapter, "rank_pattern", name, usual)
        if said != rank:
            raise WeightsError(f"{start}lora_A.weight has rank {rank}, and {CONFIG} says {said}.")
        # What the scale is here, over what it is of all.
        own_scale = _scale(_of_pattern(adapter, "alpha_pattern", name, alpha), rank, rooted)
        factor = own_scale / _scale(alpha, usual, rooted)
        a_RI = read_tensor(adapter, f"{start}lora_A.weight", (rank, module.inputs))
        b_OR = read_tensor(adapter, f"{start}lora_B.weight", (module.outputs, rank)) * factor
        used |= {f"{start}lora_A.weight", f"{start}lora_B.weight"}
        m_O = None
        if adapter.config.get("use_dora"):
            m_name = f"{start}lora_magnitude_vector"
            m_name = m_name if m_name in adapter.tensors else f"{m_name}.weight"
            m_O = read_tensor(adapter, m_name, (module.outputs,))
            used.add(m_name)
        for piece in module.pieces:
            path, rows = projection(piece), module.holds(piece)
            a, b = (own[f"{path}/lora/{n}"][piece.at] for n in "ab")
            a[..., :rank] = a_RI.T.reshape(*a.shape[:-1], rank)
            b[:rank] = b_OR[rows].T.reshape(rank, *b.shape[1:])
            b[rank:] = 0
            if m_O is not None:
                m = own[f"{path}/lora/m"][piece.at]
                m[...] = m_O[rows].reshape(m.shape)
    left = [n for n in adapter.tensors if ".lora_" in n and n not in used]
    if left:
        raise WeightsError(f"{adapter.origin}: {left[0]} is left over, of no pair that is known.")


def _of_pattern(adapter, field, name, default):
    """What a pattern of the config says of a module; only plain endings of names are read."""
    table = adapter.config.get(field) or {}
    if not isinstance(table, dict):
        raise WeightsError(f"{adapter.origin}/{CONFIG}: {field} is no object.")
    for key, value in table.items():
        if not re.fullmatch(r"\^?[\w.]+", key):
            raise WeightsError(
                f"{adapter.origin}/{CONFIG}: {field} has {key!r}; names, or ends of them, are read."
            )
        if not isinstance(value, int | float) or not 0 < value <= 1e9:
            raise WeightsError(f"{adapter.origin}/{CONFIG}: {field}[{key!r}]={value!r}.")
        plain = key.removeprefix("^")
        if name == plain or (key == plain and name.endswith(f".{plain}")):
            return value
    return default


def _ia3_section(adapter, c, family):
    found = _targets(adapter, c, family, ".ia3_l")
    outs = [m for name, m in found.items() if not _reads_forward(adapter, name)]
    ins = [m for name, m in found.items() if _reads_forward(adapter, name)]
    section = {"kind": "ia3"}
    section |= {"outputs": _pattern(outs)} if outs else {}
    return section | ({"inputs": _pattern(ins)} if ins else {})


def _reads_forward(adapter, name):
    """Whether factors are of a module's inputs: [1, inputs], where others are [outputs, 1]."""
    shape = adapter.tensors[f"{ROOT}{name}.ia3_l"].shape
    if len(shape) != 2 or 1 not in shape:
        raise WeightsError(f"{adapter.origin}: {name}.ia3_l has shape {tuple(shape)}.")
    return shape[0] == 1


def _ia3_fill(adapter, section, c, family, own):
    del section
    for name, module in _targets(adapter, c, family, ".ia3_l").items():
        key = f"{ROOT}{name}.ia3_l"
        if not _reads_forward(adapter, name):
            factor = read_tensor(adapter, key, (module.outputs, 1))
            for piece in module.pieces:
                w = own[f"{projection(piece)}/scale_out/w"][piece.at]
                w[...] = factor[module.holds(piece)].reshape(w.shape)
            continue
        factor = read_tensor(adapter, key, (1, module.inputs))
        for piece in module.pieces:
            w = own[f"{projection(piece)}/scale_in/w"][piece.at]
            w[...] = factor.reshape(w.shape)


def _virtual_section(kind):
    def section(adapter, c, family):
        del c, family
        tokens = number(adapter, "num_virtual_tokens", 1, MOST, whole=True)
        return {"kind": kind, "tokens": tokens}

    return section


def _prompt_fill(adapter, section, c, family, own):
    del family
    table_PD = read_tensor(adapter, "prompt_embeddings", (section["tokens"], c.width))
    path = next(path for path in own if path.endswith("prompt/table"))
    own[path] = table_PD / np.float32(c.width**0.5) if c.embed_scale else table_PD


def _prefix_fill(adapter, section, c, family, own):
    del family
    sizes = (section["tokens"], c.layers, 2, c.kv_heads, c.head_width)
    flat = read_tensor(adapter, "prompt_embeddings", (sizes[0], math.prod(sizes[1:])))
    both = flat.reshape(sizes).transpose(2, 1, 0, 3, 4)
    own["layers/attn/prefix/k"], own["layers/attn/prefix/v"] = both


def _own_section(adapter, c, family):
    del c
    section = adapter.config.get("finetune")
    if adapter.config.get("family") != family or not isinstance(section, dict):
        raise WeightsError(
            f"{adapter.origin}: of family {adapter.config.get('family')!r}, and the base is of "
            f"{family!r}."
        )
    return section | {"kind": "adapter"}  # its options are checked where any config's are


def _own_fill(adapter, section, c, family, own):
    del section, c, family
    extra = adapter.tensors.keys() - own.keys()
    if extra:
        raise WeightsError(f"{adapter.origin}: {min(extra)} is left over.{near(min(extra), own)}")
    for path, x in own.items():
        own[path] = read_tensor(adapter, path, x.shape)


# peft_type: (adapter, c, family -> section; adapter, section, c, family, own -> None, fills it).
KINDS = {
    "LORA": (_lora_section, _lora_fill),
    "IA3": (_ia3_section, _ia3_fill),
    "PROMPT_TUNING": (_virtual_section("prompt"), _prompt_fill),
    "PREFIX_TUNING": (_virtual_section("prefix"), _prefix_fill),
    OWN_TYPE: (_own_section, _own_fill),
}
