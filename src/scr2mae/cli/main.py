"""The program: parse the command line, run a command, turn the outcome into an exit code."""

from __future__ import annotations

import inspect
import sys
import textwrap
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from scr2mae import __version__
from scr2mae.cli import dna, text, vision
from scr2mae.cli.benchmark import benchmark
from scr2mae.cli.demo import demo
from scr2mae.cli.embed import embed
from scr2mae.cli.flags import in_flags
from scr2mae.cli.options import Messages, UsageError
from scr2mae.cli.predict import predict
from scr2mae.cli.prepare import prepare
from scr2mae.cli.probe import probe
from scr2mae.cli.process import messages_on_stderr
from scr2mae.cli.train import train

__all__ = ["app", "main"]

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

_EPILOGUE = f"""\
Exit codes:
  {EXIT_OK:<4} success
  {EXIT_ERROR:<4} invalid data or file; the error is printed to stderr
  {EXIT_USAGE:<4} usage error
  {EXIT_INTERRUPTED:<4} interrupted

Results go to stdout, messages to stderr.
`scr2mae COMMAND --help` shows the options and examples of a command."""

# Errors in the input, as opposed to a defect of the program.
_EXPECTED = (OSError, LookupError, ValueError, RuntimeError, MemoryError, NotImplementedError)
_LONGEST_MESSAGE = 600
_HELP_FLAGS = ("--help", "-h")


def _default_in_help(value: Any) -> str | None:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or None
    return None if value is None or value is False else str(value)


def _add(app: App, *commands: Callable[..., str]) -> None:
    """Add functions as commands; the examples in their docstrings end their help."""
    for position, command in enumerate(commands):
        examples = (inspect.getdoc(command) or "").partition("Examples\n--------\n")[2]
        epilogue = f"Examples:\n{textwrap.indent(examples, '  ')}"
        app.command(command, help_epilogue=epilogue, sort_key=position)


app = App(
    name="scr2mae",
    help="Self-supervised embeddings of single-cell counts (R²MAE).",
    version=f"scr2mae {__version__}",
    help_format="plaintext",
    help_epilogue=_EPILOGUE,
    help_flags=_HELP_FLAGS,
    default_parameter=Parameter(negative=(), allow_repeating=True, show_default=_default_in_help),
)
_add(app, prepare, train, embed, probe, predict, benchmark, demo)
for position, domain in enumerate((dna, vision, text)):
    name = domain.__name__.rpartition(".")[2]
    group = App(name=name, help=domain.__doc__, help_epilogue="", group="Other domains", sort_key=position)
    _add(group, *domain.COMMANDS)
    app.command(group)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (None for the arguments of the process) and return the exit code.

    0 is success, 1 invalid data or file, 2 a usage error, 130 an interruption.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    messages = Messages()
    say = in_flags(())
    try:
        if "-" in tokens:  # HDF5 files and model folders need random access
            raise UsageError("'-' (a stream) is not supported; give the path of a file or folder")
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
        if inspect.ismethod(command):  # the help or the version
            if command.__name__ == "help_print" and not set(_HELP_FLAGS) & set(tokens):
                raise UsageError("a command is missing")
            command(*bound.args, **bound.kwargs)
            return EXIT_OK
        messages = next((each for each in bound.arguments.values() if isinstance(each, Messages)), messages)
        say = in_flags(_flags(tokens))
        with messages_on_stderr(quiet=messages.quiet, debug=messages.debug, say=say):
            result = command(*bound.args, **bound.kwargs)
        if result:
            sys.stdout.write(result.rstrip("\n") + "\n")
            sys.stdout.flush()
    except (CycloptsError, UsageError) as error:
        words = " ".join(["scr2mae", *app.parse_commands(tokens)[0]])
        sys.stderr.write(f"{words}: error: {_usage_message(error)}\nTry '{words} --help'.\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        sys.stderr.write("scr2mae: interrupted\n")
        return EXIT_INTERRUPTED
    except Exception as error:
        if messages.debug:
            traceback.print_exc()
        sys.stderr.write(f"scr2mae: error: {say(_one_line(error))}\n")
        return EXIT_ERROR
    return EXIT_OK


def _flags(tokens: Sequence[str]) -> set[str]:
    """Return the options of the command that is run."""
    command = app.parse_commands(tokens)[1][-1]
    return {name for argument in command.assemble_argument_collection() for name in argument.names}


def _usage_message(error: CycloptsError | UsageError) -> str:
    line = " ".join(str(error).split())
    argument = getattr(error, "argument", None)
    return line if argument is None or argument.name in line else f"{argument.name}: {line}"


def _one_line(error: Exception) -> str:
    """Return the message of an error on one line."""
    # str() of a KeyError puts its message in quotes.
    text = error.args[0] if isinstance(error, KeyError) and len(error.args) == 1 else error
    line = (
        textwrap.shorten(str(text), _LONGEST_MESSAGE, placeholder=" ... (--debug shows the rest)")
        or "no message"
    )
    # The import system names the module that it did not find; without one the message says what to install.
    if isinstance(error, ImportError) and error.name is None:
        return line
    # Lightning's exception for settings that do not go together has no base class of its own.
    if isinstance(error, _EXPECTED) or type(error).__name__ == "MisconfigurationException":
        return line
    return f"{line} ({type(error).__name__}, which may be a defect of scr2mae; --debug shows where)"
