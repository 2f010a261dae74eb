"""What the command line prints, and the code it ends with."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pipelines import console
from pipelines.console import ConsoleHandler, as_line, counted, facts, plain, run, suggest
from serving.interrupts import undisturbed
from vae_anomaly.exceptions import ConfigError, DataError, MissingPackageError


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(error: BaseException) -> Any:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("no rows; give some"), 1, "vae-anomaly: no rows; give some\n"),
        (DataError("two\nlines"), 1, "vae-anomaly: two lines\n"),
        (ConfigError("draws is 0; expected 1 or more"), 2, "vae-anomaly: draws is 0; expected 1 or more\n"),
        (
            ModuleNotFoundError("No module named 'sklearn'", name="sklearn.metrics"),
            1,
            "vae-anomaly: sklearn.metrics is not installed; pip install 'vae-anomaly[train]'\n",
        ),
        (
            MissingPackageError("digits needs sklearn; install it"),
            1,
            "vae-anomaly: digits needs sklearn; install it\n",
        ),
        (
            OSError(28, "No space left on device", "/x/y.json"),
            1,
            "vae-anomaly: No space left on device: /x/y.json\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(3), 3, ""),
    ],
)
def test_errors_are_one_line_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error)) == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        ModuleNotFoundError("No module named 'pipelines.x'", name="pipelines.x"),
        SystemExit(143),
    ],
)
def test_bugs_keep_their_traceback(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        run(raising(error))
    assert caught.value is error


def test_what_a_command_returns_is_the_code_if_it_is_one() -> None:
    assert [run(lambda value=value: value) for value in (None, 0, 4, "text")] == [0, 0, 4, 0]


@pytest.mark.parametrize("name", ["a[red]b.csv", "[/]", "x" * 300, ":smile: 12.5"])
def test_file_names_are_printed_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain(console.out, name)
    plain(console.err, name, style="yellow")
    assert capsys.readouterr() == (name + "\n", name + "\n")


def test_bytes_that_are_no_text_are_shown_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    plain(console.out, os.fsdecode(b"bad\xff name.png"))
    assert capsys.readouterr().out == "bad\\xff name.png\n"


def test_facts_stand_in_columns_and_nothing_is_left_out_but_none(capsys: pytest.CaptureFixture[str]) -> None:
    facts(("rows", 0), ("rejected", None), ("written", Path("a b")))
    suggest("next one")
    assert capsys.readouterr().out == "  rows     0\n  written  a b\nnext:\n  next one\n"


@pytest.mark.parametrize(("number", "said"), [(0, "0 rows"), (1, "1 row"), (1200, "1,200 rows")])
def test_counts(number: int, said: str) -> None:
    assert counted(number, "row") == said


def test_summaries_are_json_with_paths_as_text() -> None:
    assert json.loads(as_line({"out": Path("a/b"), "rows": 3, "none": None})) == {
        "out": "a/b",
        "rows": 3,
        "none": None,
    }


def test_a_log_record_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("vae_anomaly.test")
    handler = ConsoleHandler()
    logger.addHandler(handler)
    try:
        logger.warning("constant columns: %s", "[k] " * 60)
    finally:
        logger.removeHandler(handler)
    assert capsys.readouterr().err == "warning: constant columns: " + "[k] " * 60 + "\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_until_the_block_is_done(number: int) -> None:
    steps: list[str] = []

    def stop(*_: Any) -> None:
        steps.append("stopped")

    signal.signal(number, stop)
    with undisturbed():
        signal.raise_signal(number)
        steps.append("written")
    assert steps == ["written", "stopped"]
    assert signal.getsignal(number) is stop


def test_a_second_interrupt_does_not_wait() -> None:
    # A job in a shell's background starts with the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    steps: list[str] = []

    def impatient() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            steps.append("first")
            signal.raise_signal(signal.SIGINT)
            steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        impatient()
    assert steps == ["first"]


def test_other_threads_are_left_alone() -> None:
    done: list[bool] = []

    def work() -> None:
        with undisturbed():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_sigterm_ends_a_command_with_143_and_tidies_up() -> None:
    code = (
        "import os, signal, sys\n"
        "from pipelines.console import run\n"
        "def work():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        print('tidy')\n"
        "sys.exit(run(work))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "tidy\n")
