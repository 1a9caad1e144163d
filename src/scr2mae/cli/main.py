"""Parse, run one subcommand, turn what happened into an exit code."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from scr2mae import __version__
from scr2mae.cli import benchmark, demo, dna, embed, prepare, probe, text, train, vision
from scr2mae.cli.command import Command, CommandGroup, UsageError

__all__ = ["COMMANDS", "build_parser", "main"]

COMMANDS: tuple[Command | CommandGroup, ...] = (
    prepare.COMMAND,
    train.COMMAND,
    embed.COMMAND,
    probe.COMMAND,
    benchmark.COMMAND,
    demo.COMMAND,
    dna.COMMAND,
    vision.COMMAND,
    text.COMMAND,
)
"""The subcommands, in the order of ``scr2mae --help``. A new one is a file with a ``COMMAND`` and an entry here."""

EXIT_OK, EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

_EPILOG = f"""\
exit codes:
  {EXIT_OK:<4} success
  {EXIT_ERROR:<4} something is wrong with the data or a file; one line on stderr says what
  {EXIT_USAGE:<4} something is wrong with the command line
  {EXIT_INTERRUPTED:<4} interrupted

Results go to stdout, messages to stderr.
`scr2mae COMMAND --help` shows the options and examples of a command."""

# What is wrong with the input, as opposed to a defect of the program.
_EXPECTED = (OSError, LookupError, ValueError, RuntimeError, MemoryError, NotImplementedError)
_LONGEST_MESSAGE = 600


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="scr2mae",
        description="Self-supervised embeddings of single-cell counts (R²MAE).",
        epilog=_EPILOG,
        formatter_class=raw,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        _add(subparsers, command)
    return parser


def _add(subparsers: Any, command: Command | CommandGroup) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    if isinstance(command, CommandGroup):
        group = subparsers.add_parser(
            command.name, help=command.summary, description=command.summary, allow_abbrev=False
        )
        inner = group.add_subparsers(metavar="COMMAND", required=True)
        for each in command.commands:
            _add(inner, each)
        return
    examples = "\n".join(f"  {line}" for line in command.examples.strip().splitlines())
    subparser = subparsers.add_parser(
        command.name,
        help=command.summary,
        description=command.description,
        epilog=f"examples:\n{examples}",
        formatter_class=raw,
        allow_abbrev=False,
    )
    command.add_arguments(subparser)
    messages = subparser.add_argument_group("messages")
    messages.add_argument("-q", "--quiet", action="store_true", help="no progress, only warnings and errors")
    messages.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparser.set_defaults(command=command, subparser=subparser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments; None for those of the process.

    Returns
    -------
    Exit code: 0 success, 1 an error in data or files, 2 wrong usage, 130 interrupted.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    try:
        with _messages_on_stderr(quiet=args.quiet, debug=args.debug):
            text = args.command.run(args)
        if text:
            sys.stdout.write(text.rstrip("\n") + "\n")
            sys.stdout.flush()
    except UsageError as error:
        args.subparser.print_usage(sys.stderr)
        sys.stderr.write(f"{args.subparser.prog}: error: {error}\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        sys.stderr.write("scr2mae: interrupted\n")
        return EXIT_INTERRUPTED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        sys.stderr.write(f"scr2mae: error: {_one_line(error)}\n")
        return EXIT_ERROR
    return EXIT_OK


def _one_line(error: Exception) -> str:
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


@contextlib.contextmanager
def _messages_on_stderr(*, quiet: bool, debug: bool) -> Iterator[None]:
    """Send log lines, warnings and whatever a library prints to stderr, so that stdout holds results alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("scr2mae: %(message)s"))
    logger = logging.getLogger("scr2mae")
    level = logger.level

    def show(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
        sys.stderr.write(f"scr2mae: warning: {' '.join(str(message).split())}\n")

    from scr2mae._utils.progress import no_progress

    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), no_progress(quiet):
        if not debug:
            warnings.showwarning = show
            # These are for programmers, and the program's user is none.
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
