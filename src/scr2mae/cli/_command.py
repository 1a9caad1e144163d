"""What a subcommand is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Command", "UsageError"]


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
