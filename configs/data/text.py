"""A corpus of your own text files or JSONL.

python -m jaxllm.prepare --config=configs/data/text.py --config.sources.main.path=notes/ \
    --workdir=corpora/notes
"""

from configs.data import base


def get_config(arg=None):
    c = base.get_config(arg)
    c.sources.main = dict(kind="jsonl", path="")
    return c
