"""The command line: what it writes, what it refuses and when, and what it says."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import scr2mae
from scr2mae import R2MAEModel
from scr2mae.cli import main
from scr2mae.cli.main import app
from scr2mae.cli.process import loading

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
EVERYWHERE = {"--help", "-h", "--quiet", "-q", "--debug"}
HELP_IN_A_FRESH_PROCESS = """
import sys
from scr2mae.cli import main

codes = [main([*words.split(), "--help"]) for words in sys.argv[1:]]
heavy = {"torch", "scvi", "lightning", "scanpy", "anndata", "pandas", "numpy", "matplotlib"} & set(sys.modules)
sys.exit(f"{codes} {heavy}" if any(codes) or heavy else 0)
"""


def commands(group=app, before=()):
    """Yield the words that name each command, such as ``dna train``, and the command."""
    for name in group:
        if not name.startswith("-"):
            command, words = group[name], (*before, name)
            yield from [(words, command)] if command.default_command else commands(command, words)


COMMANDS = list(commands())
IDS = [" ".join(words) for words, _ in COMMANDS]


def parse(arguments):
    """Return the function that a command line runs, and its arguments with the defaults."""
    command, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    bound.apply_defaults()
    return command, bound.arguments


# --- help and registry


def test_help_loads_neither_torch_nor_scvi():
    lines = ["", "dna", "vision", "text", *IDS]
    done = subprocess.run(
        [sys.executable, "-c", HELP_IN_A_FRESH_PROCESS, *lines], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for line in lines:
        assert f"Usage: scr2mae {line}" in done.stdout


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=IDS)
def test_the_examples_in_the_help_are_valid_command_lines(words, command, capsys):
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    examples = shown.partition("Examples:\n")[2].replace("\\\n", "").strip().splitlines()
    assert examples
    for line in examples:
        program, *arguments = shlex.split(line)
        assert program == "scr2mae"
        assert parse(arguments)[0] is command.default_command


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=IDS)
def test_every_option_is_explained_in_the_help_and_in_the_guide(words, command):
    pages = "\n".join((GUIDE / name).read_text(encoding="utf-8") for name in ("cli.md", "cli_modalities.md"))
    section = pages.split(f"## scr2mae {' '.join(words)}\n")[1].split("\n## ")[0]
    for argument in command.assemble_argument_collection(parse_docstring=True):
        if argument.show and not argument.children:
            assert argument.parameter.help, argument.name
        names = {name for name in argument.names if name.startswith("-")} - {*argument.negatives, *EVERYWHERE}
        assert [name for name in names if f"`{name}" not in section] == []


def test_names_of_commands_are_unique():
    assert len(set(IDS)) == len(IDS)


def test_exit_codes_are_in_the_help(capsys):
    assert main(["--help"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.split("Exit codes:")[1].splitlines()]
    assert [line[0] for line in lines if line and line[0].isdigit()] == ["0", "1", "2", "130"]


def test_the_version_is_the_package_s(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"scr2mae {scr2mae.__version__}\n"


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("2", 2), ("0,3", [0, 3]), ("1,", [1])])
def test_devices_are_a_number_or_positions(text, value):
    arguments = ["train", "counts.h5ad", "-o", "model", "--devices", text]
    assert parse(arguments)[1]["run"].devices == value


# --- errors in data and files: 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a folder in which nobody can write")
@pytest.mark.parametrize("line", ["train counts.h5ad -o /proc/model", "demo -o /proc/demo"])
def test_a_folder_that_cannot_be_written_to_is_found_out_before_training(line, counts, capsys, no_training):
    assert main(shlex.split(line)) == 1
    assert "error: Cannot write to /proc: " in capsys.readouterr().err


def test_debug_shows_the_traceback_and_the_same_code(folder, capsys):
    assert main(["train", "none.h5ad", "-o", "model", "--debug"]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("scr2mae: error: No file none.h5ad.\n")


def test_a_defect_is_told_from_an_error_in_the_data(counts, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise TypeError("'NoneType' object\nis not callable")

    monkeypatch.setattr(R2MAEModel, "train", broken)
    assert main(["train", "counts.h5ad", "-o", "model", "-q"]) == 1
    assert capsys.readouterr().err == (
        "scr2mae: error: 'NoneType' object is not callable (TypeError, which may be a defect of scr2mae; "
        "--debug shows where)\n"
    )


def test_a_long_message_is_cut(counts, monkeypatch, capsys):
    def mismatch(*args, **kwargs):
        raise RuntimeError("size mismatch\n" * 500)

    monkeypatch.setattr(R2MAEModel, "train", mismatch)
    assert main(["train", "counts.h5ad", "-o", "model", "-q"]) == 1
    err = capsys.readouterr().err
    assert len(err) < 700
    assert err.endswith(" ... (--debug shows the rest)\n")


def test_a_checkpoint_that_leaves_nothing_to_do_is_not_a_defect(counts, tiny, capsys):
    run = ["train", "counts.h5ad", "-q", *tiny, "--checkpoint-dir", "run"]
    assert main([*run, "-o", "model", "--max-epochs", "4"]) == 0
    assert main([*run, "-o", "other", "--max-epochs", "1", "--resume", "run"]) == 1
    err = capsys.readouterr().err
    assert "is from epoch 4; max_epochs includes those epochs" in err
    assert "defect" not in err


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_the_process_while_libraries_load_and_is_an_exception_again_after(set_sigint):
    script = "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); from scr2mae.cli.process import loading\nwith loading(): os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")
    set_sigint(signal.default_int_handler)
    with loading():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_program_ends_with_the_code_and_without_a_traceback(folder):
    done = subprocess.run(
        [sys.executable, "-m", "scr2mae.cli", "train", "none.h5ad", "-o", "model"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "scr2mae: error: No file none.h5ad.\n")
