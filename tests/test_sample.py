"""Every flag of jaxllm.sample, on a tiny run, in this process."""

import json

import pytest
from absl import flags

from jaxllm import sample, tokenizers
from jaxllm.config import ConfigError
from jaxllm.tokenizers import TokenizerError, chat
from tests import runs

SPECIALS = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def trained(compile_cache, tmp_path_factory):
    """Work directories of two runs with one tokenizer, which has the tokens of chats."""
    found = []
    for seed in (0, 1):
        fields = {
            "runtime.compile_cache": compile_cache, "steps": 2, "checkpoint.every": 2, "seed": seed,
            "validate.every": 0, "tokenizer.kind": "hf", "tokenizer.vocab_size": 300,
            "tokenizer.specials": SPECIALS,
        }  # fmt: skip
        found.append(tmp_path_factory.mktemp("run"))
        assert runs.train(runs.config(fields), found[-1]) == 0
    return found


@pytest.fixture(scope="module", autouse=True)
def defined():
    """The command's flags, as long as this file runs."""
    before = set(flags.FLAGS)
    sample.define_flags()
    yield
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)


@pytest.fixture
def call(trained, capsys):
    """(*words) -> what the command prints."""

    def run(*words):
        flags.FLAGS.unparse_flags()
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        flags.FLAGS(["sample", f"--workdir={trained[0]}", "--tokens=6", *words])
        capsys.readouterr()
        assert sample.main("", []) == 0
        return capsys.readouterr()

    return run


def lines(done):
    """The JSON objects printed."""
    return [json.loads(line) for line in done.out.splitlines()]


def test_json_tells_tokens_and_log_probabilities(call, trained):
    tokenizer = tokenizers.load(trained[0] / "tokenizer")
    words = ["--prompt=one", "--prompt=two", "--json", "--logprobs=2", "--count=2"]
    found = lines(call(*words))
    assert [one["prompt"] for one in found] == ["one", "one", "two", "two"]
    for one in found:
        assert one["reason"] in ("length", "end") and len(one["logp"]) == len(one["tokens"])
        assert one["text"] == tokenizer.decode(one["tokens"])
        assert all(len(top) == 2 and top[0][1] >= top[1][1] for top in one["top"])
    assert found[0]["tokens"] != found[1]["tokens"]
    other = lines(call(*words, "--kv_int8", "--weights=int8"))
    assert other[0]["logp"] != found[0]["logp"]
    assert abs(other[0]["top"][0][0][1] - found[0]["top"][0][0][1]) < 0.2


def test_ways_to_draw(call, trained):
    greedy = lines(call("--json", "--prompt=one", "--temperature=0"))[0]
    drafted = lines(call("--json", "--prompt=one", "--temperature=0", f"--draft={trained[1]}"))[0]
    assert drafted["tokens"] == greedy["tokens"] and 0 <= drafted["accepted"] <= 1
    one, two = lines(call("--json", "--prompt=one", "--beams=2", "--count=2"))
    assert one["score"] > two["score"] and one["tokens"] != two["tokens"]
    alone = lines(call("--json", "--prompt=one", "--beams=1"))[0]
    assert alone["tokens"] == greedy["tokens"]
    words = ["--json", "--prompt=one", "--temperature=0", f"--ensemble={trained[1]}"]
    probabilities = lines(call(*words))[0]["logp"]
    logits = lines(call(*words, "--average=logits"))[0]["logp"]
    assert len({tuple(x) for x in (greedy["logp"], probabilities, logits)}) == 3


def test_stops_and_choices_and_files(call, tmp_path):
    text = lines(call("--json", "--prompt=one"))[0]["text"]
    stopped = lines(call("--json", "--prompt=one", f"--stop={text[2:4]}"))[0]
    assert stopped["text"] == text[: text.index(text[2:4])] and stopped["reason"] == "stop"
    assert call("--prompt=one").out == f"one{text}\n"
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    (tmp_path / "a.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    shown = [call(f"--prompts_file={tmp_path / name}").out for name in ("a.txt", "a.jsonl")]
    assert shown[0] == shown[1] and shown[0].startswith(f"--- 1\none{text}\n--- 2\ntwo")
    for one in lines(call("--json", "--choices=yes,no", "--count=5", "--tokens=9")):
        assert one["text"] in ("yes", "no") and one["reason"] == "choice"


def test_chat_by_the_models_own_template_or_by_name(call, trained):
    own = trained[0] / "tokenizer"
    with pytest.raises(ConfigError, match=r"Try --chat_template=chatml, or --chat_template=plain"):
        call("--chat", "--prompt=hi")
    # What the model's own template makes of the second turn shows that it is the one in use.
    told = "{% if messages | length > 3 %}{{ raise_exception(messages[0].content) }}{% endif %}"
    chat.save(own, chat.ChatTemplate(told + "{{ messages[-1].content }}"))
    words = ["--chat", "--prompt=hi", "--prompt=so", "--system=Short."]
    try:
        with pytest.raises(TokenizerError, match=r"Short\."):
            call(*words)
    finally:
        (own / chat.TEMPLATE_FILE).unlink()
    for name in ("chatml", "plain"):
        assert len(call(*words, f"--chat_template={name}").out.splitlines()) >= 2
    with pytest.raises(TokenizerError, match="gemma"):
        call("--chat", "--prompt=hi", "--chat_template=gemma")


def test_an_answer_ends_where_its_template_ends_it(trained):
    tokenizer = tokenizers.load(trained[0] / "tokenizer")
    template = chat.built_in("chatml", tokenizer)
    assert sample._turn_ends(tokenizer, template) == [tokenizer.specials["<|im_end|>"]]
    assert sample._turn_ends(tokenizer, sample.PLAIN) == []


def test_each_turn_sees_those_before():
    seen = []

    def reply(messages):
        seen.append([(m["role"], m["content"]) for m in messages])
        return f"answer {len(seen)}"

    first = {"role": "system", "content": "be"}
    told = sample.talk(reply, ["a", "  ", "b"], [first])
    assert seen[1] == [
        ("system", "be"), ("user", "a"), ("assistant", "answer 1"), ("user", "b"),
    ]  # fmt: skip
    assert told[-1] == {"role": "assistant", "content": "answer 2"}


@pytest.mark.parametrize(
    "words, problem", [
        (["--beams=2", "--draft=x"], "--beams does not go with --draft"),
        (["--beams=2", "--count=3"], "returned=3 must be from 1 to beams=2"),
        (["--draft=x", "--choices=a,b"], "--draft does not go with --choices"),
        (["--chat", "--json"], "--chat does not go with --json"),
        (["--chat", "--count=2"], "--chat does not go with --count=2"),
        (["--logprobs=2"], "--logprobs=2 needs --json"),
        (["--chat_template=chatml"], "--chat_template=chatml needs --chat"),
        (["--prompts_file=/nowhere"], "--prompts_file=/nowhere: FileNotFoundError"),
        (["--top_p=2"], "--top_p=2.0 must be in"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_told(call, words, problem):
    with pytest.raises(ConfigError, match=problem):
        call(*words)


def test_what_one_run_writes_goes_through_the_other(call, trained):
    """As calling the second with the texts of the first."""
    words = ["--prompt=to be", "--prompt=or not", "--temperature=0"]
    there = [line["text"].strip() for line in lines(call(*words, "--json"))]
    assert all(there)
    both = lines(call(*words, "--json", f"--then={trained[1]}"))
    assert [line["prompt"] for line in both] == ["to be", "or not"]
    flags.FLAGS.unparse_flags()
    back = [f"--prompt={text}" for text in there]
    again = lines(call(*back, "--temperature=0", "--json", f"--workdir={trained[1]}"))
    assert [line["text"] for line in both] == [line["text"] for line in again]
    with pytest.raises(ConfigError, match="--then does not go with --chat"):
        call("--chat", "--prompt=a", f"--then={trained[1]}")
