"""TensorFlow Datasets by name, read through ArrayRecord without TensorFlow."""

from jaxllm.data.errors import BadInput, DataError
from jaxllm.data.sources import check_text


class TfdsSource:
    """One split of a TFDS data set; each example a document."""

    def __init__(self, name, split, field, data_dir):
        tfds = _library()
        try:
            self._source = tfds.data_source(name, split=split, data_dir=data_dir or None)
        except Exception as error:  # the library raises many kinds, most of them bare
            raise DataError(
                f"TFDS cannot open {name!r}, split {split!r}, in {data_dir or 'its default'}: "
                f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}\n"
                "  Older data sets must be prepared once as array_record where TensorFlow is "
                "installed; then name their directory with data_dir."
            ) from error
        self._name, self._field = f"{name}/{split}", field
        info = self._source.dataset_info
        self._description = {
            "kind": "tfds",
            "name": info.full_name,
            "directory": str(info.data_dir),
            "split": split,
            "field": field,
            "examples": len(self._source),
            "size_bytes": int(info.dataset_size),
        }

    def describe(self):
        return self._description

    def documents(self, bad=None):
        bad = bad or BadInput()
        for i in range(len(self._source)):
            where, record = f"{self._name}:{i}", self._source[i]
            if self._field not in record:
                known = ", ".join(map(repr, record))
                bad("missing field", where, f"{self._field!r} is not among {known}")
                continue
            value = record[self._field]
            if isinstance(value, bytes):
                try:
                    value = value.decode()
                except UnicodeDecodeError as error:
                    bad("undecodable bytes", where, f"{error.reason} (not UTF-8)")
                    continue
            document = check_text(value, self._field, where, bad)
            if document is not None:
                yield document


def _library():
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f"A tfds source needs TensorFlow Datasets ({error}).\n"
            '  Install it with: pip install "tensorflow-datasets>=4.9.10,<5"'
        ) from error
    return tensorflow_datasets


def make(*, name="", split="train", field="text", data_dir=""):
    """A TFDS data set, read through `tfds.data_source` without TensorFlow.

    Args:
        name: such as "lm1b" or "tiny_shakespeare:1.0.0".
        split: such as "train" or "train[:1%]".
        field: the feature that holds the text.
        data_dir: where prepared data sets lie; "" is TFDS's default, ~/tensorflow_datasets.

    Raises:
        DataError: the library is not installed, or has no such data set or split.
    """
    if not name:
        raise DataError("name is empty; name a TFDS data set.")
    return TfdsSource(name, split, field, data_dir)
