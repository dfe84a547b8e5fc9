"""What the command says of itself, and how it answers words that it does not know."""

import os
import subprocess
import sys

import pytest

import mtsk
from mtsk.cli import VERBS
from tests.commands.conftest import Run


def test_help_of_the_command(run: Run) -> None:
    result = run("--help")
    assert (result.code, result.err) == (0, "")
    assert all(f" {verb} " in result.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(run: Run, verb: str) -> None:
    result = run(verb, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: mtsk {verb} ")
    assert "None" not in result.out  # nothing of Python in it


def test_help_is_instant() -> None:
    program = (
        "import sys; sys.argv = ['mtsk', '--help']\n"
        "from mtsk.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'lhotse', 'av', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    before = os.times()
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1.0  # seconds


def test_version(run: Run) -> None:
    for flag in ("--version", "-V"):
        assert run(flag).out == f"mtsk {mtsk.__version__}\n"


def test_nothing_asked(run: Run) -> None:
    result = run()
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("usage: mtsk ")


@pytest.mark.parametrize("arguments", [["transscribe", "a.wav"], ["transcribe", "a.wav", "--scales", "a4"]])
def test_unknown_words(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "nrecognized" in result.err
    assert arguments[0] in result.err or "--scales" in result.err


def test_recipes(run: Run) -> None:
    result = run("train", "--list")
    assert (result.code, result.err) == (0, "")
    assert result.lines[0].split()[0] == "grid-s1"
