"""Fine-tunes a model in several ways with several seeds, and measures what each gains and loses.

    python experiments/forgetting/run.py --init=runs/smollm2 --out=runs/forgetting \
        [--ways=full,lora,full+replay] [--seeds=0,1,2] [--rows=completion|pairs] \
        [--tasks=experiments/forgetting/tasks.json] [--results=FILE.json] [--plot=FILE.png] \
        [FIELD=VALUE …]

Data lie where make_data.py puts them. A way is a kind of `config.finetune`, "@RATE" behind it for
another learning rate than the usual one, "+replay" for a tenth of its rows from replay.jsonl;
FIELD=VALUE sets `config.FIELD` of all. --results keeps all that is known of every run from one
--init over one --tasks; what stands there, or lies in OUT, is not done again. Prints a table, means
over seeds with their range; --plot draws the trade-off.
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from jaxllm import cli, figures, finetune
from jaxllm.models.families import model_config
from jaxllm.training import setup

HERE = pathlib.Path(__file__).absolute().parent
TARGET = "summaries"
COLUMNS = (
    "way", "seeds", "trained", "validation loss", TARGET, "gain, %", "loss elsewhere, %",
    "s a step", "GB",
)  # fmt: skip


def main():
    """Runs what is asked for, seed by seed, so that all ways have one before any has two."""
    args = parse()
    runs = json.loads(args.results.read_text()) if args.results.is_file() else []
    wanted = [(way, int(seed)) for seed in args.seeds.split(",") for way in args.ways.split(",")]
    for way, seed in wanted:
        if not any(is_of(run, way, seed, args.settings) for run in runs):
            runs.append(one(args, way, seed))
            args.results.write_text(json.dumps(runs, indent=1) + "\n")
    runs = [run for pair in wanted for run in runs if is_of(run, *pair, args.settings)]
    print(table(runs))
    if args.plot:
        draw(runs, args.plot)


def is_of(run, way, seed, settings):
    """Whether a run is of this way, seed and settings."""
    return (run["way"], run["seed"], run["settings"]) == (way, seed, settings)


def parse():
    """Returns the arguments; places as they are from anywhere."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--ways", default="full,lora,full+replay")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rows", default="completion", choices=["completion", "pairs"])
    parser.add_argument("--tasks", default=HERE / "tasks.json")
    parser.add_argument("--results", default="")  # OUT/results.json
    parser.add_argument("--plot", default="")
    parser.add_argument("settings", nargs="*", metavar="FIELD=VALUE")
    args = parser.parse_args()
    args.results = args.results or f"{args.out}/results.json"
    for name in ("init", "out", "tasks", "results"):
        setattr(args, name, pathlib.Path(getattr(args, name)).expanduser().absolute())
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def one(args, way, seed):
    """Trains and scores a run, unless that is done; returns what is known of it."""
    kind, _, more = way.partition("+")
    kind, _, rate = kind.partition("@")
    settings = [*args.settings, *([f"schedule.lr={rate}"] if rate else [])]
    workdir = args.out / "-".join([way, str(seed), *args.settings])
    arg = f"init={args.init},method={kind},rows={args.rows},path={HERE}/data"
    if more:
        old = "replay.jsonl" if args.rows == "completion" else "t5_mixture.jsonl"
        arg += f",replay={HERE}/data/{old}"
    file = f"{HERE}/finetune.py:{arg}"
    fields = [f"--config.{text}" for text in (f"seed={seed}", *settings)]
    summary = workdir / "summary.json"
    if not (summary.is_file() and json.loads(summary.read_text())["status"] == "done"):
        command("train", f"--config={file}", f"--workdir={workdir}", *fields)
    # Another run knows what the model before has scored; its own report is made again, the same.
    scored = [path.parent for path in sorted(args.out.glob("*/forgetting.json"))]
    after = [workdir, *(path for path in scored if path != workdir)][:2]
    command(
        "evaluate", f"--before={args.init}", f"--after={','.join(map(str, after))}",
        f"--tasks={args.tasks}", f"--target={TARGET}",
    )  # fmt: skip
    summary = json.loads(summary.read_text())
    report = json.loads((workdir / "forgetting.json").read_text())["report"]["after"][-1]
    speed = map(json.loads, (workdir / "speed.jsonl").read_text().splitlines())
    config, _ = cli.load_config(file, [tuple(text.split("=", 1)) for text in settings])
    return {
        "way": way,
        "seed": seed,
        "settings": args.settings,
        "trained": count(config),
        "validation_loss": summary["final"]["validation/loss"],
        "step_s": statistics.median(row["step_s"] for row in speed if row["kind"] == "speed"),
        "memory_bytes": summary["plan"]["planned"]["compiled_bytes"],
        **{name: report[name] for name in ("rows", "gain", "loss")},
    }


def command(name, *rest):
    """Runs `python -m jaxllm.NAME`, its output to stderr; where it fails, so do we.

    Ctrl-C reaches it, too: it is left the time to write what it has.
    """
    print("$ jaxllm." + name, *rest, file=sys.stderr, flush=True)
    words = [sys.executable, "-m", f"jaxllm.{name}", *rest]
    child, stopped = subprocess.Popen(words, cwd=HERE.parents[1], stdout=sys.stderr), False
    while child.returncode is None:
        try:
            child.wait()
        except KeyboardInterrupt:
            stopped = True
    if stopped:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
    if stopped or child.returncode:
        sys.exit(130 if stopped else child.returncode)


def count(config):
    """Parameters that a config trains."""
    c = model_config(config.model, vocab=setup.vocabulary(config), length=config.data.length)
    trained, _ = finetune.infos(finetune.of(config), c, config.init_fresh)
    return sum(math.prod(info.shape) for info in trained.values())


def grouped(runs):
    """{way: its runs}."""
    found = {}
    for run in runs:
        found.setdefault(run["way"], []).append(run)
    return found


def mean(values, digits):
    """A mean as text, with the range of what it is of; a dash for parts of nothing."""
    if None in values:
        return "-"
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({min(values):.{digits}f} to {max(values):.{digits}f})"
    return text


def table(runs):
    """The runs as a table of Markdown, a line for each way."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for way, some in grouped(runs).items():
        target = [row["after"] for run in some for row in run["rows"] if row["target"]]
        cells = (
            way, str(len(some)), f"{some[0]['trained']:,}",
            mean([run["validation_loss"] for run in some], 4), mean(target, 4),
            *(mean([run[name] and run[name][0] for run in some], 1) for name in ("gain", "loss")),
            mean([run["step_s"] for run in some], 2), f"{some[0]['memory_bytes'] / 1e9:.2f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def retention(run, task):
    """What a run kept of a task, per cent; NaN where there was nothing before."""
    found = next(row["retention"] for row in run["rows"] if row["task"] == task)
    return math.nan if found is None else found


def draw(runs, file):
    """Draws gain on the target against loss elsewhere, and what each task kept.

    A point is a run with the interval of its examples, where the score before was not nothing; on
    the right a bar is the mean of a way's runs.
    """
    figure, (left, right) = figures.panels(2, width=6.0, height=4.4)
    ways = grouped(runs)
    names = [row["task"] for row in runs[0]["rows"] if not row["target"]]
    width = 0.8 / len(ways)
    for number, (way, some) in enumerate(ways.items()):
        colour = figures.UNLIKE[number % len(figures.UNLIKE)]
        for run in (run for run in some if run["gain"] and run["loss"]):
            (x, x0, x1), (y, y0, y1) = run["loss"], run["gain"]
            left.errorbar(x, y, [[y - y0], [y1 - y]], [[x - x0], [x1 - x]], color=colour,
                          marker="o", markersize=5, elinewidth=0.6, capsize=2)  # fmt: skip
        left.plot([], [], "o", color=colour, label=way)
        kept = [statistics.mean(retention(run, name) for run in some) for name in names]
        at = [i + (number - (len(ways) - 1) / 2) * width for i in range(len(names))]
        right.bar(at, kept, width, color=colour, label=way)
    left.plot(0, 0, "k+", markersize=10, label="before")
    left.axhline(0, color="black", linewidth=0.5)
    left.axvline(0, color="black", linewidth=0.5)
    left.set(xlabel="mean loss elsewhere, %", ylabel="gain on summaries, %", title="Trade-off")
    left.legend(fontsize=7, frameon=False)
    right.axhline(100, color="black", linewidth=0.5)
    right.set_xticks(range(len(names)), names, rotation=30, ha="right")
    right.set(ylabel="retention, %", title="What is left of the others")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
