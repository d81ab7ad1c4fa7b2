"""The command line."""

from paretomerge.cli.main import main as main
