"""Examples as token shards: an example is a document, and arrays beside tell its parts and labels.

Beside `SPLIT.offsets.npy`, where each example begins in the token stream, lie

- `SPLIT.parts.npy`, int64[parts, 4]: number of the example, where the part begins in the stream,
  its role, whether its tokens count in a loss;
- `SPLIT.label.npy`: int32[examples], a class; float32[examples], a number; or int64[examples, 2],
  first and last token of the answer in the stream, -1 for none;
- `SPLIT.tags.npy`, int32[tokens]: the tag of each token, -1 for none.

Tokens are those of the texts alone; what stands before, between and behind them is added when rows
are made. The manifest has the names of the classes, the ids of special tokens and the task.
"""

import numpy as np

from jaxllm.config import near
from jaxllm.data import shards
from jaxllm.data.errors import BadInput, DataError
from jaxllm.data.examples import chats
from jaxllm.tokenizers import TokenizerError

# What examples are for, and what is known of each: its array and dtype, where there is one.
TASKS = {
    "pairs": None,
    "classify": ("label", "<i4", 0),
    "regress": ("label", "<f4", 0),
    "span": ("label", "<i8", 2),
    "tag": ("tags", "<i4", 0),
    "chat": None,
}
# Numbers in stored arrays: append, never reorder.
ROLES = (
    *("text", "second", "input", "target", "question", "context"),
    *("system", "user", "assistant", "tool", "prompt", "chosen", "rejected"),
)


def add_all(source, tokenizer, writers, choose, bad, options):
    """Writes all examples of a source.

    Args:
        source: `records.ExampleSource`.
        tokenizer: what encodes the texts.
        writers: {split: shards.SplitWriter}.
        choose: text -> split.
        bad: `BadInput`.
        options: what the shards depend on besides; of chats see `chats.settings`.

    Returns:
        What the manifest has besides.

    Raises:
        DataError: bad input, or a task that needs classes and finds none.
    """
    classes = classes_of(source, bad.policy)
    encode_chat = chats.Encoder(tokenizer, options, bad) if source.task == "chat" else None
    for writer in writers.values():  # of a split without examples, too
        writer.array("parts", "<i8", 4)
        if TASKS[source.task]:
            writer.array(*TASKS[source.task])
    for example in source.examples(bad):
        writer = writers[choose(example.group or example.parts[0].content)]
        unknown = [name for name in names(example) if name not in classes]
        if unknown and source.task in ("classify", "tag"):
            detail = f"{unknown[0]!r} is not among classes.{near(unknown[0], classes)}"
            bad("unknown class", example.where, detail)
            continue
        if encode_chat:
            _add_chat(writer, example, encode_chat(example))
        else:
            _add(writer, tokenizer, example, source.task, classes, bad)
    return {
        **({"shortened": encode_chat.shortened} if encode_chat else {}),
        "task": source.task,
        "classes": list(classes),
        "settings": source.settings,
        "marks": marks(tokenizer),
    }


def classes_of(source, policy):
    """Returns {class or tag: number}; those of the files where the source names none.

    Args:
        source: `records.ExampleSource`.
        policy: of `BadInput`.

    Raises:
        DataError: bad input.
    """
    if source.task not in ("classify", "tag"):
        return {}
    if source.classes:
        return {name: i for i, name in enumerate(source.classes)}
    found = set()
    for example in source.examples(BadInput(policy)):
        found.update(names(example))
    return {name: i for i, name in enumerate(sorted(found))}


def names(example):
    """Returns the names of an example's class or tags."""
    if isinstance(example.label, str):
        return [example.label]
    return [mark[2] for part in example.parts for mark in part.marks]


def _add(writer, tokenizer, example, task, classes, bad):
    """Appends an example to a split."""
    encoded, answer = [], (-1, -1)
    try:
        for index, part in enumerate(example.parts):
            encoded.append(_encode(tokenizer, part, index, example.label, task))
    except TokenizerError as error:
        raise DataError(f"{example.where}: {error}") from error
    if task == "span" and example.label:
        index, *characters = example.label
        found = _cover(encoded[index][1], *characters)
        if found is None:
            bad("answer without a token", example.where)
            return
        answer = writer.tokens + sum(len(ids) for ids, _ in encoded[:index]) + found
    number = writer.documents
    writer.start_document()
    for part, (ids, places) in zip(example.parts, encoded, strict=True):
        row = (number, writer.tokens, ROLES.index(part.role), part.loss)
        writer.array("parts", "<i8", 4).write([row])
        if task == "tag":
            writer.array(*TASKS[task]).write(_tags(places, part.marks, classes))
        writer.write(ids, example.where)
        if isinstance(part.content, str):
            writer.bytes += len(part.content.encode())
            writer.characters += len(part.content)
    label = {"span": answer, "regress": example.label}
    label |= {"classify": classes[example.label]} if task == "classify" else {}
    if task in label:
        writer.array(*TASKS[task]).write([label[task]])


def _add_chat(writer, example, parts):
    """Appends a chat to a split, nothing where `parts` is None."""
    if parts is None:
        return
    number = writer.documents
    writer.start_document()
    for role, loss, ids in parts:
        row = (number, writer.tokens, ROLES.index(role), loss)
        writer.array("parts", "<i8", 4).write([row])
        writer.write(ids, example.where)
    for part in example.parts:
        writer.bytes += len(part.content.encode())
        writer.characters += len(part.content)


def _encode(tokenizer, part, index, label, task):
    """Returns (ids, characters of each) of a part; the second only where they are needed."""
    if not isinstance(part.content, str):
        return np.asarray(part.content, np.int64), None
    if task == "tag" or (task == "span" and label and label[0] == index):
        return tokenizer.locate(part.content)
    return tokenizer.encode(part.content), None


def _cover(places, first, last):
    """Returns the first and the last token that hold some of the characters from first to last."""
    inside = np.flatnonzero((places[:, 1] > first) & (places[:, 0] < last))
    return np.array([inside[0], inside[-1]]) if inside.size else None


def _tags(places, marks, classes):
    """Returns the number of the tag at the first token of each word, -1 elsewhere."""
    tags = np.full(len(places), -1, np.int32)
    for first, last, name in marks:
        found = _cover(places, first, last)
        if found is not None:
            tags[found[0]] = classes[name]
    return tags


def marks(tokenizer):
    """Returns {name: id, -1 for none} of the tokens that stand before, between and behind texts."""
    special = tokenizer.specials
    first = [special[name] for name in ("[CLS]", "<cls>") if name in special]
    between = [special[name] for name in ("[SEP]", "<sep>") if name in special]
    pad = tokenizer.pad if tokenizer.pad >= 0 else special.get("[PAD]", -1)
    return {
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "cls": first[0] if first else tokenizer.bos,
        "sep": between[0] if between else tokenizer.eos,
        "pad": pad,
    }


class Stored:
    """The examples of one split.

    Args:
        directory, manifest, split: of the shard set.

    Attributes:
        examples: how many.
        first: int64[examples + 1], the first part of each.
        lengths: int64[parts], tokens of each.
        loss: bool[parts], whether they count.
        manifest: as given.
    """

    def __init__(self, directory, manifest, split):
        self.manifest, part = manifest, manifest["splits"][split]
        self.examples, self.tokens = part["documents"], part["tokens"]
        self.stream = shards.TokenStream(directory, manifest, split)
        parts = shards.read_array(directory, manifest, split, "parts")
        self.starts = np.ascontiguousarray(parts[:, 1])
        self.role, self.loss = np.array(parts[:, 2], np.int8), np.array(parts[:, 3], bool)
        self.first = np.searchsorted(parts[:, 0], np.arange(self.examples + 1))
        self.lengths = np.diff(self.starts, append=self.tokens)
        found = TASKS[manifest["task"]]
        name = found and found[0]
        self.label = shards.read_array(directory, manifest, split, name) if name else None

    def ids(self, part, first=0, count=None):
        """Returns `count` token ids of a part from `first` on, int32."""
        count = int(self.lengths[part]) if count is None else int(count)
        return self.stream.piece(int(self.starts[part]) + first, count).astype(np.int32)

    def parts(self, example):
        """Returns the numbers of an example's parts."""
        return range(int(self.first[example]), int(self.first[example + 1]))
