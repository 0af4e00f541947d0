"""The command line: options in, one call into the package, rows and an exit code out. One file a group of commands."""

from energy_lens.cli.app import app
from energy_lens.cli.main import main

__all__ = ["app", "main"]
