"""The TPU scripts: what --dry-run prints is what a shell would run, word for word."""

import os
import pathlib
import shlex
import subprocess
import time

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "tpu_scripts"
SCRIPTS = ["create.sh", "setup.sh", "run.sh", "logs.sh", "delete.sh"]
SLICE = ["--name", "pod", "--zone", "us-central2-b"]
MORE = {"create.sh": ["--type", "v4-32"], "run.sh": ["--", "true"]}  # what else must be given
NASTY = ["a b", "it's", '"quoted"', "$HOME", "`date`", "semi;colon", "*", "new\nline", "", "ü"]

# Stands for gcloud: "ssh" runs the command in the worker's home directory, as sshd would.
GCLOUD = """#!/usr/bin/env bash
while [[ $# -gt 0 && $1 != --command ]]; do shift; done
cd "$WORKER_HOME" && exec bash -c "$2"
"""


def call(script, *words, **options):
    return subprocess.run(
        [FOLDER / script, *words], capture_output=True, text=True, timeout=30, **options
    )


def printed(script, *words):
    """The commands that a dry run prints, each as a list of words."""
    done = call(script, *words, "--dry-run", *MORE.get(script, []))
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def value_after(command, option):
    return command[command.index(option) + 1]


@pytest.mark.parametrize("script", [*SCRIPTS, "common.sh"])
def test_bash_can_parse_it(script):
    """Every script is valid bash."""
    done = subprocess.run(["bash", "-n", FOLDER / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option(script):
    """--help succeeds and lists whatever the script takes."""
    done = call(script, "--help")
    taken = {"--name", "--zone", "--project", "--dry-run"}
    for line in (FOLDER / script).read_text().splitlines():
        word = line.strip().split(")")[0]
        if word.startswith("--") and word != "--" and " " not in word:
            taken.add(word)
    assert done.returncode == 0
    assert not [option for option in taken if f"{option} " not in done.stdout]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("missing", ["--name", "--zone"])
def test_what_is_missing_is_named(script, missing):
    """Without a name or a zone nothing is run, the status is 2 and the error gives an example."""
    at = SLICE.index(missing)
    done = call(script, *SLICE[:at], *SLICE[at + 2 :], "--dry-run", *MORE.get(script, []))
    assert done.returncode == 2 and not done.stdout
    assert f"{missing} is missing, such as {missing} " in done.stderr


@pytest.mark.parametrize(
    ("script", "words", "error"),
    [
        ("create.sh", SLICE, "--type is missing"),
        ("create.sh", [*SLICE, "--type"], "--type needs a value"),
        ("create.sh", ["--name", "--zone", "z"], "--name needs a value"),
        ("run.sh", SLICE, "the command is missing"),
        ("logs.sh", [*SLICE, "--worker", "first"], "--worker takes a number or all"),
        ("delete.sh", [*SLICE, "--force"], "unknown argument: --force"),
    ],
)
def test_a_wrong_call_says_why(script, words, error):
    """Status 2 and one line that names the argument."""
    done = call(script, *words, "--dry-run") if words[-1] != "--type" else call(script, *words)
    assert done.returncode == 2 and error in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_is_for_the_slice_that_was_named(script):
    """Name, zone and project reach every gcloud command as they were typed."""
    words = ["--name", "my pod", "--zone", "z;1", "--project", "p$1"]
    commands = [c for c in printed(script, *words) if c[0] == "gcloud"]
    assert commands
    for command in commands:
        assert command[1:4] == ["compute", "tpus", "tpu-vm"]
        assert value_after(command, "--zone") == "z;1"
        assert value_after(command, "--project") == "p$1"
        assert any(word.split(":")[0] == "my pod" for word in command)


def test_create_asks_for_the_type():
    """And for a preemptible slice only when told to."""
    (command,) = printed("create.sh", *SLICE)
    assert command[4] == "create" and value_after(command, "--accelerator-type") == "v4-32"
    assert "--spot" not in command
    assert "--spot" in printed("create.sh", *SLICE, "--spot")[0]


def test_setup_and_run_reach_every_worker():
    """A slice where one worker lacks the code or the command would hang."""
    for script in ("setup.sh", "run.sh"):
        for command in printed(script, *SLICE):
            if command[0] == "gcloud":
                assert value_after(command, "--worker") == "all"


def test_delete_asks_first():
    """Unless told not to."""
    assert "--quiet" not in printed("delete.sh", *SLICE)[0]
    assert "--quiet" in printed("delete.sh", *SLICE, "--yes")[0]


@pytest.fixture
def worker(tmp_path):
    """Calls a script against one worker, whose home directory is `home`."""
    home, binaries = tmp_path / "home", tmp_path / "bin"
    (home / "my dir").mkdir(parents=True)
    binaries.mkdir()
    (binaries / "gcloud").write_text(GCLOUD)
    (binaries / "gcloud").chmod(0o755)
    path = f"{binaries}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "WORKER_HOME": str(home)}

    def on_worker(script, *words):
        return call(script, *SLICE, "--dir", "my dir", *words, env=env)

    on_worker.home = home / "my dir"
    return on_worker


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_the_command_arrives_word_for_word(worker):
    """Through two shells: spaces, quotes, dollars, stars, line ends and empty words."""
    show = "import sys; print(ascii(sys.argv[1:]))"
    done = worker("run.sh", "--", "python3", "-c", show, *NASTY)
    assert done.returncode == 0, done.stderr
    log = worker.home / "logs" / "run.log"
    assert wait_for(lambda: log.read_text().endswith("\n")) and log.read_text() == f"{NASTY!a}\n"
    assert worker("logs.sh").stdout == log.read_text()


def test_the_command_outlives_the_connection_and_can_be_stopped(worker):
    """run.sh returns at once; a second command is refused until --stop has ended the first."""
    start = time.monotonic()
    assert worker("run.sh", "--", "sleep", "60").returncode == 0
    assert time.monotonic() - start < 10
    pid = int((worker.home / "logs" / "run.pid").read_text())
    try:
        os.kill(pid, 0)
        assert wait_for(lambda: os.getsid(pid) == pid), "the end of the ssh session would end it"
        second = worker("run.sh", "--", "true")
        assert second.returncode == 1 and "still running" in second.stderr
        assert worker("run.sh", "--stop").returncode == 0
        assert wait_for(lambda: _ended(pid))
        assert worker("run.sh", "--", "true").returncode == 0
    finally:
        if not _ended(pid):
            os.kill(pid, 9)


def _ended(pid):
    """Whether a process is gone, or waits only for somebody to ask for its status."""
    status = pathlib.Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
