"""Chats: records of several shapes as messages, and messages as ids by a template.

A chat is rendered once, when its shards are made: what is stored are its ids, in parts of which
those that the assistant says count in the loss.
"""

import bisect
from typing import NamedTuple

import numpy as np

from jaxllm.config import ConfigError, near
from jaxllm.data import files
from jaxllm.data.errors import DataError
from jaxllm.data.examples.records import (
    SUFFIXES,
    Example,
    ExampleSource,
    Part,
    Unfit,
    entries,
    get,
    mapping,
    whole,
)
from jaxllm.tokenizers import TokenizerError, chat, sandbox

LOSS_ON = ("answers", "last", "all")
TOO_LONG = ("turns", "cut", "drop")
FIRST = ("system", "developer")  # roles of what stays before the turns


class Turns(NamedTuple):
    """A record with a list of messages: names of the list, and of the fields in it.

    Attributes:
        known: {role in the file: role}, besides the roles themselves.
    """

    messages: str
    role: str
    content: str
    known: tuple = ()


class Exchange(NamedTuple):
    """A record with a question and its answer: names of the fields, "" for none.

    Attributes:
        more: goes behind the question, where it is there and not empty.
    """

    system: str
    question: str
    more: str
    answer: str


# How records look, by name.
SHAPES = {
    "messages": Turns("messages", "role", "content"),
    "sharegpt": Turns(
        "conversations", "from", "value", (("human", "user"), ("gpt", "assistant"))
    ),
    "alpaca": Exchange("", "instruction", "input", "output"),
    "prompt": Exchange("", "prompt", "", "response"),
}  # fmt: skip


def make_chat(record, where, shape, fields, roles, tools):
    """Returns the Example of a record, whose label is (messages, tools or None); see `chats`."""
    look = SHAPES[shape]._replace(**fields)
    if isinstance(look, Turns):
        messages = _turns(record, look, dict(look.known) | dict(roles))
    else:
        messages = _exchange(record, look)
    first = next((i for i, m in enumerate(messages) if m["role"] not in FIRST), 0)
    group = "\n".join(message["content"] for message in messages[: first + 1])
    parts = tuple(
        Part(m["content"], "assistant" if m["role"] == "assistant" else "prompt") for m in messages
    )
    return Example(parts, where, (messages, record.get(tools)), group)


def _turns(record, look, known):
    if look.messages not in record:
        other = next((n for n, s in SHAPES.items() if _looks_like(record, s)), "")
        hint = f"; it looks like shape={other!r}" if other else ""
        raise Unfit("missing field", f"{look.messages!r} is not among {_names(record)}{hint}")
    messages = []
    for i, one in enumerate(entries(record, look.messages)):
        field = f"{look.messages}[{i}]"
        one = mapping(one, field)
        role = get(one, look.role)
        role = known[role] if isinstance(role, str) and role in known else role
        if role not in chat.ROLES:
            listed = ", ".join([*known, *chat.ROLES])
            detail = f"{field} has the role {role!r}.{near(str(role), [*known, *chat.ROLES])}"
            raise Unfit("unknown role", f"{detail} Known: {listed}; roles=('{role}=user',) adds it")
        calls = role == "assistant" and "tool_calls" in one
        content = one.get(look.content)
        if content is None and calls:
            content = ""
        if not isinstance(content, str):
            kind = type(content).__name__
            raise Unfit("content is not text", f"{field}.{look.content} is a {kind}")
        if not content.strip() and not calls and role in ("user", "assistant"):
            raise Unfit("empty message", f"{field}.{look.content} is empty")
        rest = {k: v for k, v in one.items() if k not in (look.role, look.content)}
        messages.append({**rest, "role": role, "content": whole(content, field)})
    if not messages:
        raise Unfit("no messages", f"{look.messages!r} is empty")
    return messages


def _exchange(record, look):
    question, answer = _text(record, look.question), _text(record, look.answer)
    more = record.get(look.more)
    if more:
        question = f"{question}\n\n{_text(record, look.more)}"
    system = record.get(look.system)
    messages = [{"role": "system", "content": _text(record, look.system)}] if system else []
    return [
        *messages,
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


def _text(record, field):
    value = get(record, field)
    if not isinstance(value, str):
        raise Unfit("field is not text", f"{field!r} is a {type(value).__name__}")
    if not value.strip():
        raise Unfit("empty message", f"{field!r} is empty")
    return whole(value, field)


def _looks_like(record, shape):
    if isinstance(shape, Turns):
        return shape.messages in record
    return shape.question in record and shape.answer in record


def _names(record):
    return ", ".join(map(repr, list(record)[:8])) or "none"


def chats(*, path="", shape="messages", fields=(), roles=(), tools="", where=""):
    """Chats: messages with roles, or a question and its answer.

    Args:
        path, where: as of `pairs`.
        shape: how records look, one of `SHAPES`: "messages" ([{role, content}]), "sharegpt"
            (conversations, from, value), "alpaca" (instruction, input, output), "prompt" (prompt,
            response).
        fields: other names of fields as "name in the shape=theirs", such as "messages=dialog".
        roles: further roles as "theirs=ours", such as "bot=assistant".
        tools: name of the field that lists tools, for the template; "" for none.

    Raises:
        DataError: no file matches, an unknown shape, a field it has not, or a role.
    """
    if shape not in SHAPES:
        raise DataError(
            f"shape={shape!r} is unknown.{near(shape, SHAPES)} Known: {', '.join(SHAPES)}. One "
            "of them, such as messages."
        )
    known = [name for name in SHAPES[shape]._fields if name != "known"]
    fields = dict(_pair("fields", one, 0, known, f"{known[0]}=other") for one in fields)
    roles = dict(_pair("roles", one, 1, chat.ROLES, "bot=assistant") for one in roles)
    options = {"shape": shape, "fields": fields, "roles": roles, "tools": tools}
    look = SHAPES[shape]._replace(**fields)
    read = [look.messages] if isinstance(look, Turns) else list(look)
    return ExampleSource(
        "chats", files.find(path, SUFFIXES), make_chat, options,
        fields=[name for name in (*read, tools) if name], where=where, task="chat",
    )  # fmt: skip


def _pair(option, text, side, known, good):
    """Returns (before, behind) the = of a text, one side of which must be known."""
    found = text.split("=") if isinstance(text, str) else ()
    if len(found) != 2 or found[side] not in known:
        raise DataError(
            f"{option} holds {text!r}, which has none of {', '.join(known)} "
            f"{('before', 'behind')[side]} its =, as in {option}=({good!r},)."
        )
    return tuple(found)


def check(config, options):
    """Raises ConfigError for settings of chats that are unknown.

    Args:
        config: `config.data`.
        options: `rows.ChatOptions`.
    """
    for field, known in (("loss_on", LOSS_ON), ("too_long", TOO_LONG)):
        value = getattr(options, field)
        if value not in known:
            raise ConfigError(
                f"config.data.{field}={value!r} is unknown.{near(value, known)} "
                f"Known: {', '.join(known)}.\n  Try --config.data.{field}={known[0]}."
            )


def settings(tokenizer, template, too_long, room):
    """Returns what the shards of chats depend on besides.

    Args:
        tokenizer: see `Tokenizer`.
        template: `config.data.template`.
        too_long: `config.data.too_long`.
        room: tokens of a chat that fit a row.

    Raises:
        ConfigError: no such template, or the tokenizer lacks its tokens.
    """
    try:
        found = chat.choose(template, tokenizer)
    except TokenizerError as error:
        raise ConfigError(str(error)) from None
    made = {"template": {"text": found.text, "specials": found.specials}}
    return made | ({"room": room} if too_long == "turns" else {})


class Encoder:
    """Encodes chats by a template.

    Args:
        tokenizer: see `Tokenizer`.
        made: what `settings` returned.
        bad: `BadInput`.

    Attributes:
        shortened: chats that lost their oldest turns.
    """

    def __init__(self, tokenizer, made, bad):
        self._tokenizer, self._bad, self.shortened = tokenizer, bad, 0
        self._template = chat.ChatTemplate(**made["template"])
        self._room = {"room": 0, **made}["room"]

    def __call__(self, example):
        """Returns [(role, loss, ids)] of a chat, None for one that `bad` was told of.

        Raises:
            DataError: bad input, or a template that cannot be used.
        """
        messages, tools = example.label
        try:
            found = self._encode(messages, tools)
            if self._room and len(found[0]) > self._room:
                found = self._shorten(messages, tools)
        except sandbox.TemplateError as error:
            raise DataError(f"{example.where}: {error}") from error
        except TokenizerError as error:
            self._bad("chat that the template refuses", example.where, str(error))
            return None
        if found is None:
            self._bad.leave_out("longer than a row by its last turn alone", example.where)
            return None
        ids, answer = found
        edges = np.flatnonzero(np.diff(answer, prepend=-1))
        return [
            ("assistant" if answer[edge] else "prompt", bool(answer[edge]), part)
            for edge, part in zip(edges, np.split(ids, edges[1:]), strict=True)
        ]

    def _encode(self, messages, tools):
        more = {} if tools is None else {"tools": tools}
        return chat.encode_answers(self._tokenizer, self._template, messages, **more)

    def _shorten(self, messages, tools):
        """Encodes a chat without as few of its oldest turns as make it fit, None if none do."""
        kept = next((i for i, m in enumerate(messages) if m["role"] not in FIRST), 0)
        later = [i for i, m in enumerate(messages) if m["role"] == "user" and i > kept]
        made = {}

        def fits(i):
            made[i] = self._encode([*messages[:kept], *messages[i:]], tools)
            return len(made[i][0]) <= self._room

        at = bisect.bisect_left(later, True, key=fits)
        if at == len(later):
            return None
        self.shortened += 1
        return made[later[at]]
