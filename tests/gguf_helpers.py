"""Small models and tokenizers for the tests of GGUF files."""

import json
import struct

import numpy as np
import tokenizers as hf_library

from jaxllm.models.weights.tensors import Tensor, View

TEXT = "First Citizen: Before we proceed any further, hear me speak. 12 345 6789, naïve café!\n"
HARD = [
    "",
    " ",
    "  two  spaces ",
    "😀🎉 naïve 東京 e\u0301",
    "def f(x):\n\treturn x + 1\n\n\n",
    "1234567 89 3.14",
    "\0\x01\x7f\u2028",
    "it's we'LL don't",
    "<s></s><unk><0x41>",
]


def byte_level(pre_tokenizer=None, special="<end>", normalizer=None):
    """A trained byte-level tokenizer.json of 320 ids."""
    model = hf_library.Tokenizer(hf_library.models.BPE())
    cut = pre_tokenizer or hf_library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.pre_tokenizer = cut
    model.decoder = hf_library.decoders.ByteLevel()
    if normalizer:
        model.normalizer = normalizer
    trainer = hf_library.trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[special],
        initial_alphabet=hf_library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([TEXT * 4], trainer)
    return model.to_str().encode()


def tensor(values):
    """A Tensor over an array."""
    return Tensor(values.shape, values.dtype, lambda index: values[index])


def whole(tensor):
    """All of a Tensor."""
    return np.asarray(tensor.read(tuple(slice(0, side) for side in tensor.shape)))


def view(config, arrays, **files):
    """A View over arrays."""
    files = {name.replace("__", "."): content for name, content in files.items()}
    return View(config, {name: tensor(x) for name, x in arrays.items()}, files, "memory")


def folder_view(folder):
    """A View of what transformers saved, files by their names."""
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    return view(config, load_file(folder / "model.safetensors"))


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "max_position_embeddings": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
}


def llama_view(seed=0, dtype=np.float32, **files):
    """A one-layer Llama of random numbers."""
    random = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens": (320, 64),
        "model.norm": (64,),
        "model.layers.0.input_layernorm": (64,),
        "model.layers.0.post_attention_layernorm": (64,),
        "model.layers.0.self_attn.q_proj": (64, 64),
        "model.layers.0.self_attn.k_proj": (32, 64),
        "model.layers.0.self_attn.v_proj": (32, 64),
        "model.layers.0.self_attn.o_proj": (64, 64),
        "model.layers.0.mlp.gate_proj": (96, 64),
        "model.layers.0.mlp.up_proj": (96, 64),
        "model.layers.0.mlp.down_proj": (64, 96),
    }
    arrays = {
        f"{name}.weight": random.standard_normal(shape).astype(dtype)
        for name, shape in shapes.items()
    }
    return view(LLAMA, arrays, **files)


def text(content):
    """A string as a GGUF file has it."""
    content = content if isinstance(content, bytes) else content.encode()
    return struct.pack("<Q", len(content)) + content


def key(name, kind, content):
    """A key with its value, already packed."""
    return text(name) + struct.pack("<I", kind) + content


def entry(name, shape, kind=0, start=0):
    """A tensor's entry; shape as the file has it, columns first."""
    sides = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sides + struct.pack("<IQ", kind, start)


def file(keys=(), entries=(), data=b"", version=3, magic=b"GGUF", counts=None):
    """A GGUF file's bytes."""
    tensors, values = counts or (len(entries), len(keys))
    head = magic + struct.pack("<IQQ", version, tensors, values) + b"".join([*keys, *entries])
    return head + b"\0" * (-len(head) % 32) + data
