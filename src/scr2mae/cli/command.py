"""What a subcommand is."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Command", "CommandGroup", "UsageError", "loading"]


class UsageError(Exception):
    """Arguments that are fine one by one but not together."""


@dataclass(frozen=True)
class Command:
    """A subcommand of ``scr2mae``.

    Attributes
    ----------
    name
        What is typed.
    summary
        One line for ``scr2mae --help``.
    description
        What it does, for its own ``--help``.
    examples
        Command lines, one a line.
    add_arguments
        Declares the arguments. Called whenever a command line is parsed, so it must load nothing heavy.
    run
        Does the work and returns what goes to stdout. It may import what it likes. On failure it raises, having
        left nothing behind: :class:`UsageError` before any work is done, any other exception for data and files.
    """

    name: str
    summary: str
    description: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], str]


@dataclass(frozen=True)
class CommandGroup:
    """Subcommands behind a common first word, such as ``scr2mae dna train``.

    Attributes
    ----------
    name
        The first word.
    summary
        One line for ``scr2mae --help``.
    commands
        What follows the first word.
    """

    name: str
    summary: str
    commands: tuple[Command, ...]


@contextmanager
def loading() -> Iterator[None]:
    """Let Ctrl-C end the process at once while heavy libraries load, when there is nothing to clean up yet.

    As an exception it would strike inside their C++, which then aborts with a core dump.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
