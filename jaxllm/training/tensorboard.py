"""TensorBoard events of one run, in its own directory, written without TensorFlow.

How TensorBoard 2.2x reads what is written here:

- It reads the event files of a directory in the order of their names as one run.
- A START record makes it drop everything from that step on, but for the first START it sees. So
  every session of a run, the first one too, opens its file with one.
- The HPARAMS tab takes a run for a session if it has a session-start record, which holds the
  hyperparameters; a session-end record holds the status; metrics are the last scalars of the run.
- Of each of these records only the first of a run counts. So both live in files of their own, which
  the run's next session deletes: a resumed run shows its real end.
- Were there an "experiment" record, the tab would show only the hyperparameters that one run
  happened to list, and no filter for those that are strings. Without one it lists those of all
  runs, what differs first, and all scalars in alphabetical order, the first five of them shown.
  So the final validation metrics are also written as final/..., which comes first.
"""

import contextlib
import json
import math
import pathlib
import struct
import sys
import time


@contextlib.contextmanager
def _without(name):
    """While it lasts, a package that is not imported yet is one that is not there."""
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None
    try:
        yield
    finally:
        if absent:
            del sys.modules[name]


# It would take torch along, for the names of types: 2 s at the start of every command.
with _without("torch"):
    from tensorboardX import summary
    from tensorboardX.proto.api_pb2 import Status
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.plugin_hparams_pb2 import (
        HParamsPluginData,
        SessionEndInfo,
        SessionStartInfo,
    )
    from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboardX.record_writer import masked_crc32c

PREFIX = "events.out.tfevents."
HPARAMS, EVENTS, END = "1start", "2events", "3end"  # how names of event files end, in reading order
SUCCESS = ("done", "early_stop")


class TensorBoard:
    """Scalars, text and hyperparameters of one session of a run.

    Every record is one unbuffered write, so a killed process loses nothing that it wrote.
    """

    def __init__(self, directory, hparams, first_step):
        """Opens a new event file and says which run this is.

        Args:
            directory: of the run; its name is the run's name in TensorBoard.
            hparams: {name: str, float, int, bool, None or a list}; None is left out.
            first_step: what earlier sessions wrote from this step on is dropped.
        """
        self.directory = pathlib.Path(directory)
        for path in self.directory.glob(f"{PREFIX}*"):
            if path.name.endswith((f".{HPARAMS}", f".{END}")):
                path.unlink()
        stamp = max([int(time.time()), *(n + 1 for n in map(_stamp, self._files()))])
        self.stem = self.directory / f"{PREFIX}{stamp:010d}"
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in hparams.items():
            _set_hparam(start, name, value)
        with _Records(f"{self.stem}.{HPARAMS}") as records:
            records.summary(_hparams_summary("session_start_info", session_start_info=start))
        self.records = _Records(f"{self.stem}.{EVENTS}")
        self.records.write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, group, step, values):
        """Writes {name: number} as `group`/name; what is not a number is left out."""
        numbers = {name: value for name, value in values.items() if _is_number(value)}
        for name, value in numbers.items():
            self.records.summary(summary.scalar(f"{group}/{name}", float(value)), step)

    def text(self, tag, step, text):
        """Writes text, shown line by line as it is."""
        verbatim = "\n".join(f"    {line}" for line in text.splitlines())
        self.records.summary(summary.text(tag, verbatim), step)

    def finish(self, status, step, final):
        """Writes the final metrics and how the run ended.

        Args:
            status: "done" and "early_stop" are a success in the HPARAMS tab, the rest a failure.
            step: last step of the run.
            final: {"validation/loss": value, ...}; those of validation, and those without a
                group ("best_validation_loss"), are shown first in the HPARAMS tab.
        """
        code = Status.Value("STATUS_SUCCESS" if status in SUCCESS else "STATUS_FAILURE")
        end = SessionEndInfo(status=code, end_time_secs=time.time())
        with _Records(f"{self.stem}.{END}") as records:
            for name, value in final.items():
                if _is_number(value) and name.split("/")[0] in ("validation", name):
                    records.summary(summary.scalar(f"final/{name}", float(value)), step)
            records.summary(_hparams_summary("session_end_info", session_end_info=end), step)
        self.records.close()

    def _files(self):
        return self.directory.glob(f"{PREFIX}*.{EVENTS}")


class _Records:
    """An event file: length, checksum, event, checksum."""

    def __init__(self, path):
        self.file = open(path, "xb", buffering=0)  # noqa: SIM115 (open as long as the run)
        self.write(Event(file_version="brain.Event:2"))

    def write(self, event):
        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        crc = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self.file.write(length + crc[0] + data + crc[1])

    def summary(self, value, step=0):
        self.write(Event(step=step, summary=value))

    def close(self):
        self.file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _stamp(path):
    """Seconds in the name of an event file; 0 if it has none."""
    digits = path.name.removeprefix(PREFIX).split(".")[0]
    return int(digits) if digits.isdigit() else 0


def _is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def _set_hparam(start, name, value):
    """Adds one hyperparameter as the bool, number or text that the tab can filter by."""
    if value is None:
        return
    if isinstance(value, bool):
        start.hparams[name].bool_value = value
    elif isinstance(value, int | float) and math.isfinite(value):
        start.hparams[name].number_value = value
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        start.hparams[name].string_value = text


def _hparams_summary(tag, **info):
    """A record of the HPARAMS tab."""
    data = HParamsPluginData(version=0, **info).SerializeToString()
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=data)
    metadata = SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag=f"_hparams_/{tag}", metadata=metadata)])
