"""Chat templates by name, with what the model says marked for the loss.

Written after the formats that the models' publishers describe; what they write before and after
an answer is here, too. None takes the `tools` of a chat.
"""

from typing import NamedTuple


class BuiltIn(NamedTuple):
    """A template by name.

    Attributes:
        text: Jinja.
        tokens: special tokens that its own text is made of.
        needs: of "bos" and "eos", those that it cannot do without.
    """

    text: str
    tokens: tuple = ()
    needs: tuple = ()


_ALTERNATE = (
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns, user first') }}"
    "{% endif %}"
)
_SYSTEM_APART = (
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{% set system, messages = messages[0]['content'], messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
)
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_LLAMA2 = (
    _SYSTEM_APART + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' }}"
    "{% if loop.first and system %}{{ '<<SYS>>\n' + system + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ message['content'] | trim + ' [/INST]' }}"
    "{% else %}"
    "{% generation %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
_MISTRAL = (
    "{{ bos_token }}" + _SYSTEM_APART + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' }}{% if loop.first and system %}{{ system + '\n\n' }}{% endif %}"
    "{{ message['content'] + ' [/INST]' }}"
    "{% else %}"
    "{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}"
    "{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ bos_token }}" + _SYSTEM_APART + _ALTERNATE + "{% if message['role'] == 'user' %}"
    "{{ '<start_of_turn>user\n' }}{% if loop.first and system %}{{ system + '\n\n' }}{% endif %}"
    "{{ message['content'] | trim + '<end_of_turn>\n' }}"
    "{% else %}{{ '<start_of_turn>model\n' }}"
    "{% generation %}{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}"
    "{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
_PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_ALPACA = (
    _SYSTEM_APART
    + "{{ system or 'Below is an instruction that describes a task. Write a response that "
    "appropriately completes the request.' }}{{ '\n\n' }}"
    + _ALTERNATE
    + "{% if message['role'] == 'user' %}"
    "{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' }}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)

_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
BUILT_IN = {
    "chatml": BuiltIn(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama2": BuiltIn(_LLAMA2, (), ("bos", "eos")),
    "llama3": BuiltIn(_LLAMA3, _HEADERS, ("bos",)),
    "gemma": BuiltIn(_GEMMA, ("<start_of_turn>", "<end_of_turn>"), ("bos",)),
    "mistral": BuiltIn(_MISTRAL, (), ("bos", "eos")),
    "alpaca": BuiltIn(_ALPACA, (), ("eos",)),
    "phi3": BuiltIn(_PHI3, _ROLES, ("eos",)),
    "zephyr": BuiltIn(_ZEPHYR, (), ("eos",)),
}
