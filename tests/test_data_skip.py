"""Steps and documents that count nothing, and nothing else that changes."""

import numpy as np
import pytest

from jaxllm import data
from jaxllm.config import ConfigError
from tests import runs
from tests.data_helpers import BYTES, data_config

BOTH = {n: {"kind": "synthetic", "documents": 90, "seed": i} for i, n in enumerate("ab")}


def opened(directory, steps=50, split="train", **changes):
    config = data_config(length=200, sources=BOTH, **changes)
    data.check(config)
    data.prepare(config, BYTES, directory)
    return data.open_split(config, BYTES, directory, split, 0, steps=steps)


@pytest.mark.parametrize("rows", data.ROWS)
def test_documents_on_the_list_weigh_nothing(rows, tmp_path):
    path = tmp_path / "skip.txt"
    path.write_text("# found by hand\na 3\n\nb 7  # odd\nb 8\n")
    listed = {("a", 3), ("b", 7), ("b", 8)}
    plain = opened(tmp_path, rows=rows)
    source = opened(tmp_path, rows=rows, skip={"steps": (), "documents": str(path)})
    met = 0
    for step in range(20):
        want, got = plain(step), source(step)
        for row, name, _, pieces in data.explain(plain, step):
            for p in pieces:
                if (name, p.document) in listed:
                    want["weight"][row, p.column : p.column + p.tokens] = 0
                    met += 1
        for name, value in want.items():
            assert np.array_equal(got[name], value), name
        halves = [source(step, slice(0, 4))["weight"], source(step, slice(4, 8))["weight"]]
        assert np.array_equal(np.concatenate(halves), got["weight"])
    assert met > 3
    assert source.epochs(9) == plain.epochs(9) and source.digest
    whole = opened(tmp_path, 0, rows=rows, skip={"steps": (), "documents": str(path)})
    assert sum(b["weight"].sum() for b in whole.epoch(8)) == sum(
        b["weight"].sum() for b in plain.epoch(8)
    )


def test_steps_on_the_list_weigh_nothing(tmp_path):
    plain, source = opened(tmp_path), opened(tmp_path, skip={"steps": (2, 5), "documents": ""})
    for step in range(6):
        assert source(step)["weight"].any() == (step + 1 not in (2, 5))
        assert np.array_equal(source(step)["tokens"], plain(step)["tokens"])


@pytest.mark.parametrize("line", ["a", "c 3", "a three", "a -1", "a 3 4", "a 90"])
def test_a_line_that_names_no_document_is_refused(line, tmp_path):
    path = tmp_path / "skip.txt"
    path.write_text(f"a 1\n{line}\n")
    with pytest.raises(data.DataError, match=r"skip.txt:2"):
        opened(tmp_path, skip={"steps": (), "documents": str(path)})
    path.unlink()
    with pytest.raises(data.DataError, match="cannot be read"):
        opened(tmp_path, skip={"steps": (), "documents": str(path)})
    with pytest.raises(ConfigError, match=r"skip.steps=\(5,6\)"):
        opened(tmp_path, skip={"steps": (0,), "documents": ""})


def test_a_skipped_step_changes_no_parameter_and_stops_no_run(compile_cache, tmp_path):
    """More in a row than non-finite updates may be; the run goes on as if they had not been."""
    fields = {"runtime.compile_cache": compile_cache, "steps": 8, "validate.every": 1}
    fields |= {"validate.batch": 8, "checkpoint.every": 0, "log.every": 1}
    fields |= {"data.skip.steps": (2, 3, 4, 5, 6)}
    assert runs.train(runs.config(fields), tmp_path) == 0
    loss = [line["loss"] for line in runs.lines(tmp_path, "validation")]
    assert len(loss) == 8 and len(set(loss[:6])) == 1 and len(set(loss)) == 3
    train = runs.lines(tmp_path)
    assert [line["count"] == 0 for line in train] == [2 <= i <= 6 for i in range(1, 9)]
    assert all(np.isfinite(line["loss"]) for line in train)
    events = [line["message"] for line in runs.lines(tmp_path, "event", "events")]
    assert any("update 4 is on the skip list" in text for text in events), events
