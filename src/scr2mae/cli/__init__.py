"""The command line, thin over the API. Importing it loads neither torch nor scvi-tools."""

from scr2mae.cli.main import main

__all__ = ["main"]
