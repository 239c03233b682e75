"""What the manifest of a corpus tells besides its token shards: of what, how and by what made.

Nothing here depends on when, where or how fast it was made: `TIMINGS` holds that.
"""

import hashlib
import importlib.metadata
import pathlib
import subprocess
import tomllib

from jaxllm.data import shards

TIMINGS = "timings.json"
_ROOT = pathlib.Path(__file__).parents[2]


def hashes(description):
    """Returns {path: sha256} of the files of a source, as far as it says which they are.

    Args:
        description: of the source, from `describe`.
    """
    paths = [str(path) for path, *_ in description.get("files", ())]
    return {path: shards.hash_file(path) for path in paths if pathlib.Path(path).is_file()}


def source(description, found):
    """Returns what the manifest tells of a source: with hashes, without times of change.

    Args:
        description: from `describe`.
        found: [what each task that read some of it wrote].
    """
    counts = [one["reports"]["read"] for one in found]
    texts = hashlib.sha256("".join(one["sha256"] for one in found).encode()).hexdigest()
    known = {path: value for one in found for path, value in one["files"].items()}
    told = {
        **description,
        "sha256": texts,
        "skipped": {reason: text for one in found for reason, text in one["skipped"].items()},
        **{what: sum(n[what].get("out", 0) for n in counts) for what in ("documents", "bytes")},
        **{f"{what}_left": 0 for what in ("documents", "bytes")},
    }
    if "files" in description:
        told["files"] = [
            {"file": str(path), "bytes": size, "sha256": known.get(str(path), "")}
            for path, size, *_ in description["files"]
        ]
    return told


def count_left(source, counts):
    """Adds to a source the documents that a shard of it has in the corpus.

    Args:
        source: from `source`.
        counts: report of the shard's tokens, as plain data.
    """
    for what in ("documents", "bytes"):
        source[f"{what}_left"] += counts[what]["out"]


def reports(found):
    """Returns the stages' reports but for their times: {"stages": [name], "reports": {name: …}}."""
    plain = {stage: one.as_dict() for stage, one in found.items()}
    for one in plain.values():
        del one["seconds"]
    return {"stages": list(plain), "reports": plain}


def timings(found):
    """Returns {stage: {"seconds" of one core, "mb_per_second"}}."""
    return {
        stage: {
            "seconds": round(one.seconds, 3),
            "mb_per_second": round(one.bytes["in"] / 1e6 / one.seconds, 2) if one.seconds else 0.0,
        }
        for stage, one in found.items()
    }


# Settings that change how a corpus is made, or what is said of it, but not what it is.
NOT_OF_TEXT = ("workers", "executor", "shard_mb", "card")


def made(config):
    """Returns {"settings": those that change what is made, "code": its version}.

    Args:
        config: the whole config as plain data.
    """
    kept = {name: value for name, value in config.items() if name not in NOT_OF_TEXT}
    return {"settings": kept, "card": config.get("card") or {}, "code": code()}


def files(directory):
    """Returns {path below it: {"bytes", "sha256"}} of all that a finished corpus holds.

    But for the manifest, what is made from it (the card, its pictures) and `TIMINGS`.
    """
    directory, left_out = pathlib.Path(directory), {shards.MANIFEST, TIMINGS, "README.md"}
    found = {}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name not in left_out and path.suffix != ".png":
            found[name] = {"bytes": path.stat().st_size, "sha256": shards.hash_file(path)}
    return found


def code(root=_ROOT):
    """Returns the version of jaxllm: {"commit", "changed"} of a git checkout, else {"version"}."""
    if (root / ".git").exists():
        try:
            commit = _git(root, "rev-parse", "HEAD").strip()
            changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "jaxllm")
            return {"commit": commit, "changed": bool(changed.strip())}
        except (OSError, subprocess.CalledProcessError):
            pass
    project = root / "pyproject.toml"
    if project.is_file():
        return {"version": tomllib.loads(project.read_text())["project"]["version"]}
    try:
        return {"version": importlib.metadata.version("jaxllm")}
    except importlib.metadata.PackageNotFoundError:
        return {"version": "unknown"}


def _git(root, *arguments):
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
