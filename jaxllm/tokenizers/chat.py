"""Chats as text and as token ids, by templates in Jinja; templates and messages are hostile."""

import json
import pathlib
import re

import numpy as np

from jaxllm.config import near
from jaxllm.tokenizers import base, chat_guard, sandbox
from jaxllm.tokenizers.base import TokenizerError
from jaxllm.tokenizers.chat_templates import BUILT_IN
from jaxllm.tokenizers.named import named_tokens
from jaxllm.whole_files import replacing

TEMPLATE_FILE = "chat_template.json"
ROLES = ("system", "user", "assistant", "tool", "developer", "function", "ipython")
NAMED = ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\b")


class ChatTemplate:
    """A chat template.

    Args:
        text: Jinja, with what Hugging Face's templates may use: raise_exception, strftime_now,
            tojson, break and continue, and {% generation %} around what the model is to say.
        specials: {"bos_token": "<s>", …}: what it may name; absent ones are "".
        roles: what a message's role may be.
    """

    def __init__(self, text, specials=None, roles=ROLES):
        self.text, self.roles = text, tuple(roles)
        self.specials = dict(specials or {})
        self.marks_answers = bool(_GENERATION.search(text))

    def render(self, messages, *, add_generation_prompt=False, around=("", ""), **variables):
        """Renders a chat as text, as `apply_chat_template(tokenize=False)` of transformers does.

        Args:
            messages: [{"role", "content", …}].
            add_generation_prompt: whether to end with what comes before an answer.
            around: what is put before and after text within {% generation %}.
            **variables: what else the template takes, such as `tools` or `documents`; and `now`,
                seconds since 1970, as the time that strftime_now tells.

        Raises:
            TokenizerError: a message of an unknown role, which is named; a template that raises,
                with the first message at which it does.
            sandbox.TemplateError: a template that takes too long, gives too much or is none.
        """
        self.check(messages)
        now = variables.pop("now", None)
        values = {"tools": None, "documents": None, **variables, **self.specials}
        values["add_generation_prompt"] = add_generation_prompt

        def attempt(part):
            given = {**values, "messages": part}
            return sandbox.render(self.text, given, around=around, now=now)

        try:
            return attempt(messages)
        except sandbox.TemplateError as error:
            if error.kind != "raised":  # the template's fault, whatever the chat
                told = f"The chat template cannot be used: it {error}."
                raise sandbox.TemplateError(told, error.kind) from None
            raise TokenizerError(self._blame(messages, attempt, error)) from None

    def check(self, messages):
        """Raises TokenizerError for what is no chat, or a message of an unknown role."""
        if not isinstance(messages, list | tuple) or not messages:
            raise TokenizerError("A chat is a list of at least one message.")
        for i, message in enumerate(messages):
            role = message.get("role") if isinstance(message, dict) else None
            if role not in self.roles:
                raise TokenizerError(
                    f"messages[{i}] has the role {role!r}.{near(str(role), self.roles)} "
                    f"Known: {', '.join(self.roles)}."
                )

    @staticmethod
    def _blame(messages, attempt, error):
        """Says at which message a template begins to raise."""
        for i in range(len(messages) - 1):
            try:
                attempt(messages[: i + 1])
            except sandbox.TemplateError as first:
                error = first if first.kind == "raised" else error
                break
        else:
            i = len(messages) - 1
        role = messages[i]["role"]
        return f"The chat template refuses the chat at messages[{i}] (role {role!r}): {error}"


def built_in(name, tokenizer):
    """Returns a chat template by name, for a tokenizer that has its special tokens.

    Args:
        name: chatml, llama2, llama3, gemma, mistral, alpaca, phi3 or zephyr.
        tokenizer: see `Tokenizer`.

    Raises:
        TokenizerError: an unknown name, or a tokenizer that lacks a token.
    """
    if name not in BUILT_IN:
        raise TokenizerError(
            f"chat template {name!r} is unknown.{near(name, BUILT_IN)} "
            f"Known: {', '.join(BUILT_IN)}."
        )
    made = BUILT_IN[name]
    lacking = [token for token in made.tokens if token not in tokenizer.specials]
    if lacking:
        raise TokenizerError(
            f"chat template {name!r} needs the special tokens {', '.join(lacking)}, which this "
            f"tokenizer lacks.\n  Train one with specials={tuple(lacking)!r}, or take the "
            "template alpaca, which needs only an end token."
        )
    ends = _ends(tokenizer)
    for end in made.needs:
        if f"{end}_token" not in ends:
            raise TokenizerError(f"chat template {name!r} needs {end}, which this tokenizer lacks.")
    return ChatTemplate(made.text, ends)


def _ends(tokenizer):
    """Returns {"bos_token": "<s>", …} of a tokenizer's ends that have a name."""
    named = {i: token for token, i in tokenizer.specials.items()}
    ends = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
    return {name: named[i] for name, i in ends.items() if i in named}


def choose(name, tokenizer):
    """Returns the chat template that a config names.

    Args:
        name: "own", the one that came with the tokenizer; one of `BUILT_IN`; or a file, *.jinja.
        tokenizer: see `Tokenizer`.

    Raises:
        TokenizerError: there is none of its own, an unknown name, a file that cannot be read, or a
            tokenizer that lacks a token.
    """
    if name == "own":
        if tokenizer.template is None:
            raise TokenizerError(
                "config.data.template='own': no chat template came with this tokenizer.\n"
                f"  Try --config.data.template=chatml (known: {', '.join(BUILT_IN)}), or a file, "
                "--config.data.template=FILE.jinja."
            )
        return tokenizer.template
    if not name.endswith(".jinja"):
        return built_in(name, tokenizer)
    try:
        text = pathlib.Path(name).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"config.data.template={name!r} cannot be read: {error}.") from None
    own = tokenizer.template.specials if tokenizer.template else {}
    return ChatTemplate(text, _ends(tokenizer) | own)


def of_files(files, name="default"):
    """Returns the chat template of a Hugging Face folder, None where it has none.

    Args:
        files: {name: bytes}; of them chat_template.jinja, which wins, tokenizer_config.json and
            special_tokens_map.json are read.
        name: which one, where tokenizer_config.json lists several.

    Raises:
        TokenizerError: a file that is damaged, or no template of that name.
    """
    specials = {f"{n}_token": token for n, token in named_tokens(files, NAMED).items()}
    try:
        if "chat_template.jinja" in files:
            return ChatTemplate(files["chat_template.jinja"].decode(), specials)
        record = json.loads(files.get("tokenizer_config.json", b"{}"))
        found = record.get("chat_template")
        if isinstance(found, list):
            found = {part["name"]: part["template"] for part in found}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(f"the chat template's file is damaged: {error!r}.") from error
    if isinstance(found, dict):
        if name not in found:
            raise TokenizerError(
                f"there is no chat template {name!r}.{near(name, found)} Known: {', '.join(found)}."
            )
        found = found[name]
    if found is not None and not isinstance(found, str):
        raise TokenizerError("tokenizer_config.json: chat_template is no text.")
    return ChatTemplate(found, specials) if found else None


def save(directory, template):
    """Stores a chat template beside a tokenizer, whose fingerprint it does not change."""
    record = {"text": template.text, "specials": template.specials, "roles": template.roles}
    with replacing(pathlib.Path(directory) / TEMPLATE_FILE) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


def load(directory):
    """Loads the chat template that `save` stored beside a tokenizer, None where there is none.

    Raises:
        TokenizerError: it is damaged.
    """
    path = pathlib.Path(directory) / TEMPLATE_FILE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
        return ChatTemplate(record["text"], record["specials"], record["roles"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TokenizerError(f"{path} is damaged: {error!r}.") from error


def encode_chat(
    tokenizer, template, messages, *, add_generation_prompt=False, trusted=False, **variables
):
    """Encodes a chat, and says which tokens the assistant is to say.

    Special tokens are those that the template's own text and the messages' roles are made of;
    what reads like one within a message is plain text. Where no message holds such a thing the
    ids are those of transformers, `apply_chat_template(tokenize=True)`. Where one does, the text
    between special tokens is encoded piece by piece: tokens that swallow white space beside them
    leave it, and tokenizers that begin a text with a space begin each piece with one. A template
    that cuts a message apart and joins the rest could still make a special token of it.

    Args:
        tokenizer: see `Tokenizer`.
        template: `ChatTemplate`.
        messages: [{"role", "content", …}].
        add_generation_prompt: whether to end with what comes before an answer.
        trusted: messages may hold special tokens that count as such, as in transformers.
        **variables: see `ChatTemplate.render`.

    Returns:
        (ids int32[T], mask bool[T]: tokens of the assistant, its end of turn included). Without
        {% generation %} in the template, answers are found by rendering the chat up to each.

    Raises:
        TokenizerError: as `ChatTemplate.render`; or answers that cannot be found so, since the
            template writes earlier messages in another way when others follow.
    """
    options = {"add_generation_prompt": add_generation_prompt, "trusted": trusted}
    ids, answer = encode_answers(tokenizer, template, messages, **options, **variables)
    return ids, answer > 0


def encode_answers(
    tokenizer, template, messages, *, add_generation_prompt=False, trusted=False, **variables
):
    """As `encode_chat`, but tells answers apart.

    Returns:
        (ids int32[T], number int32[T] of the answer that a token is of, from 1; 0 for none).
    """
    template.check(messages)
    everything = [messages, variables, template.text, template.specials, list(tokenizer.specials)]
    guard = chat_guard.Guard({} if trusted else tokenizer.specials, everything)
    hidden = [{k: v if k == "role" else guard.hide(v) for k, v in m.items()} for m in messages]
    values = {name: guard.hide(value) for name, value in variables.items()}
    values["around"] = guard.around
    rendered = template.render(hidden, add_generation_prompt=add_generation_prompt, **values)
    text, answers = guard.spans(rendered)
    if not template.marks_answers:
        ends = base.any_of(tokenizer.specials)
        answers = _answers(template, hidden, text, values, ends)
    ids, spans = _tokens(tokenizer, guard, text, answers, trusted)
    number = np.zeros(len(ids), np.int32)
    for i, (start, end) in enumerate(answers, 1):
        number[(spans[:, 0] < end) & (spans[:, 1] > start)] = i
    return ids, number


def _answers(template, messages, text, values, ends):
    """Finds what the assistant says as what each of its messages adds."""
    found = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or not i:
            continue
        before = template.render(messages[:i], add_generation_prompt=True, **values)
        after = template.render(messages[: i + 1], **values)
        if not after.startswith(before) or not text.startswith(after):
            raise TokenizerError(
                f"messages[{i}]: where the answer begins and ends cannot be told, since the chat "
                "template writes it in another way when others follow.\n  Put {% generation %} "
                "and {% endgeneration %} around the answers in the template."
            )
        # White space after the end of a turn is the template's, not for the model to say.
        last = max((m.end() for m in ends.finditer(after, len(before))), default=len(after))
        found.append((len(before), last))
    if messages[0]["role"] == "assistant":
        raise TokenizerError(
            "messages[0] is an answer; where it begins cannot be told.\n  Put {% generation %} "
            "and {% endgeneration %} around the answers in the template."
        )
    return found


def _tokens(tokenizer, guard, text, answers, trusted):
    """Returns (ids int32[T], where each stands in the text, int64[T, 2])."""
    encode_spans = getattr(tokenizer, "encode_spans", None)
    if encode_spans and (trusted or not guard.hides(text)):
        return encode_spans(text, specials=True)
    ids, spans = [np.zeros(0, np.int32)], [np.zeros((0, 2), np.int64)]
    cuts = [] if encode_spans else sorted({place for answer in answers for place in answer})
    for start, end, special in chat_guard.pieces(text, base.any_of(tokenizer.specials), cuts):
        if special is not None:
            ids.append(np.array([tokenizer.specials[special]], np.int32))
            spans.append(np.array([[start, end]], np.int64))
            continue
        piece = guard.show(text[start:end])
        if encode_spans:
            made, places = encode_spans(piece)
            spans.append(places + start)
        else:
            made = tokenizer.encode(piece)
            spans.append(np.tile(np.array([[start, end]], np.int64), (len(made), 1)))
        ids.append(made)
    return np.concatenate(ids), np.concatenate(spans)
