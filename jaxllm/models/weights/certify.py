"""Whether a model computes here what it computes in transformers, on fixed tokens."""

import hashlib
import json
import math
import pathlib
import tempfile

import jax
import numpy as np

from jaxllm.models.weights import safetensors
from jaxllm.models.weights.tensors import WeightsError, boxes

# Largest difference of two logits over the largest logit: float32 sums in another order give about
# 1e-6, and a wrong norm, position or bias more than 1e-2.
TOLERANCE = 1e-4
ROWS, LENGTH = 2, 48  # of the fixed tokens
LONGEST = 1024  # tokens of a row, where a window is to be seen at work
KEPT_COLUMNS = 16  # logits a token that a certificate keeps, for machines without transformers


def fixed_tokens(c):
    """Returns int32[B, T] tokens that depend on the model's sizes alone.

    Longer than the window, where that is no more than `LONGEST`.
    """
    wanted = LENGTH if not c.window or c.window >= LONGEST else max(LENGTH, c.window + 16)
    shape = (ROWS, min(wanted, c.positions))
    tokens = np.random.default_rng(20260101).integers(0, c.vocab, shape).astype(np.int32)
    # RoBERTa's class takes the token of this id for padding, which counts for no position.
    return np.where(tokens == c.position_offset - 1, c.position_offset, tokens).astype(np.int32)


def our_outputs(model, params, tokens):
    """Returns what a model computes of fixed tokens, float32; products in full precision.

    Places before them that a soft prompt or a prefix takes are put in, and their outputs left out.
    Logits [B, T, V], what the head of a task makes, or an encoder's hidden states [B, T, D] where
    it has neither. An encoder-decoder gets the tokens as inputs, and their first half as targets.

    Args:
        model: `models.Model` with dtype float32.
        params: its parameters.
        tokens: int32[B, T].
    """
    c, room = model.config, np.zeros((len(tokens), model.lead), np.int32)
    batch = _batch(np.concatenate([room, tokens], axis=1))
    if c.assembly == "encoder_decoder":
        inputs = {"inputs": batch["tokens"], "inputs_segment": batch["segment"]}
        batch = _batch(tokens[:, : tokens.shape[1] // 2]) | inputs
    if c.assembly != "encoder" or c.lm_head:
        run = model.apply
    else:

        def run(params, batch):
            params = model.whole(params)
            x_BTD, _ = model.hidden(params, batch)
            return x_BTD if c.task == "embed" else model.task(params, x_BTD, batch)

    with jax.default_matmul_precision("highest"):
        found = np.asarray(jax.jit(run)(params, batch))
    per_token = found.ndim == 3 and c.assembly != "encoder_decoder"
    return found[:, model.lead :] if per_token else found


def _batch(tokens):
    rows, length = tokens.shape
    position = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return {"tokens": tokens, "position": position, "segment": np.ones((rows, length), np.int32)}


def certify(view, model, params, reference="", adapter=""):
    """Compares logits with those of transformers, or with a certificate of the same weights.

    With an adapter they are those of PEFT, of transformers' model with it.

    Args:
        view: `View` that the parameters were read from.
        model: `models.Model` with dtype float32.
        params: its parameters, as read.
        reference: path of a certificate.json from a machine that has transformers; "" for none.
        adapter: folder of an adapter over the View's weights, which params have in them.

    Returns:
        The certificate, as JSON can hold it: "status" is "certified", "failed" or "not certified".

    Raises:
        WeightsError: a reference that is damaged, or of other weights.
    """
    tokens = fixed_tokens(model.config)[:, : model.config.positions - model.lead]
    weights = fingerprint(view)
    if adapter:
        held = safetensors.open_file(pathlib.Path(adapter) / "adapter_model.safetensors")
        weights += fingerprint(view._replace(tensors=held))
    found = {"weights": weights, "tokens": tokens.tolist(), "tolerance": TOLERANCE}
    ours = our_outputs(model, params, tokens)
    found["logits"] = ours[..., :KEPT_COLUMNS].tolist()
    if reference:
        theirs, by = _recorded(reference, found), f"the certificate {reference}"
        ours = ours[..., : theirs.shape[-1]]
    else:
        theirs, by = _theirs(view, tokens, model.config, adapter)
    if theirs is None:
        return found | {"status": "not certified", "why": by}
    found["by"] = by
    return found | compare(ours, theirs)


def compare(ours, theirs):
    """Returns {"status", "largest_difference", "largest_logit", "same_top"} of two logits."""
    if ours.shape != theirs.shape:
        raise WeightsError(f"The logits have shapes {ours.shape} here and {theirs.shape} there.")
    largest, difference = float(np.abs(theirs).max()), float(np.abs(ours - theirs).max())
    good = math.isfinite(difference) and difference <= TOLERANCE * max(largest, 1e-6)
    return {
        "status": "certified" if good else "failed",
        "largest_difference": difference,
        "largest_logit": largest,
        "same_top": float(np.mean(ours.argmax(-1) == theirs.argmax(-1))),
    }


def fingerprint(view):
    """Returns sha256 in hex over names, shapes, dtypes and bytes of all tensors, and the config."""
    digest = hashlib.sha256()
    for name in sorted(view.tensors):
        tensor = view.tensors[name]
        digest.update(f"{name} {tuple(tensor.shape)} {np.dtype(tensor.dtype)}\n".encode())
        for box in boxes(tensor.shape):
            array = np.ascontiguousarray(tensor.read(box))
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _recorded(path, found):
    """Logits of a certificate of the same weights."""
    record = safetensors.read_json(pathlib.Path(path))
    if record.get("status") != "certified":
        raise WeightsError(f"{path} is no certificate that was passed: {record.get('status')!r}.")
    for name in ("weights", "tokens"):
        if record.get(name) != found[name]:
            raise WeightsError(f"{path} is a certificate of other {name}: it proves nothing here.")
    try:
        return np.array(record["logits"], np.float32)
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} is damaged: {error!r}.") from None


# Their class for what a model is for.
_CLASSES = {
    "none": "AutoModelForMaskedLM",
    "classify": "AutoModelForSequenceClassification",
    "regress": "AutoModelForSequenceClassification",
    "tag": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "embed": "AutoModel",
}


def their_outputs(model, tokens, c):
    """What transformers' model computes of the tokens as `our_outputs` has them, float32.

    Args:
        model: theirs.
        tokens: int32[B, T].
        c: ModelConfig of ours.
    """
    import torch

    tokens = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        if c.assembly == "encoder_decoder":
            targets = tokens[:, : tokens.shape[1] // 2]
            found = model(input_ids=tokens, decoder_input_ids=targets, use_cache=False).logits
        elif c.assembly == "decoder":
            found = model(tokens, use_cache=False).logits
        elif c.task == "embed":
            found = model(tokens).last_hidden_state
        elif c.task == "span":
            both = model(tokens)
            found = torch.stack([both.start_logits, both.end_logits], dim=-1)
        else:
            found = model(tokens).logits
    found = found.float().numpy()  # a soft prompt's places come first
    return (
        found[:, -tokens.shape[1] :]
        if found.ndim == 3 and c.assembly != "encoder_decoder"
        else found
    )


def their_class(c):
    """Name of transformers' class for a model."""
    if c.assembly == "encoder":
        return _CLASSES[c.task]
    return "AutoModelForSeq2SeqLM" if c.assembly == "encoder_decoder" else "AutoModelForCausalLM"


def _theirs(view, tokens, c, adapter):
    """Returns (float32 logits of transformers or None, by what or why not)."""
    try:
        import torch
        import transformers

        if adapter:
            import peft
    except ImportError as error:
        return None, f"{error.name} is missing: pip install -r requirements-hf.txt"
    sizes = (math.prod(t.shape) for t in view.tensors.values())
    needed, there = 4 * sum(sizes), _available_bytes()
    if there is not None and needed > 0.8 * there:
        return None, f"transformers would take {needed:,} bytes, and {there:,} are free"
    with tempfile.TemporaryDirectory() as place:
        folder = view.origin
        if not pathlib.Path(folder).is_dir():
            folder = place
            safetensors.write_folder(view, place)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        options = {"experts_implementation": "eager"} if c.experts else {}
        model = getattr(transformers, their_class(c)).from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False,
            use_safetensors=True, attn_implementation="eager", **options,
        ).eval()  # fmt: skip
        if adapter:
            model = peft.PeftModel.from_pretrained(model, adapter).eval()
        found = their_outputs(model, tokens, c)
    by = f"transformers {transformers.__version__}, torch {torch.__version__}"
    return found, f"peft {peft.__version__}, {by}" if adapter else by


def _available_bytes():
    """Memory that is free, where the system tells."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    return int(kilobytes) * 1024


def words(certificate):
    """One line about a certificate."""
    status = certificate["status"]
    if status == "not certified":
        return f"not certified: {certificate['why']}"
    return (
        f"{status} by {certificate['by']}: logits differ by at most "
        f"{certificate['largest_difference']:.2g}, the largest is "
        f"{certificate['largest_logit']:.3g}; {certificate['same_top']:.1%} of the likeliest "
        "tokens are the same"
    )


def write(certificate, path):
    """Writes a certificate as JSON."""
    pathlib.Path(path).write_text(json.dumps(certificate))
