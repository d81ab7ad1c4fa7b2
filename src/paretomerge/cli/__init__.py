"""The command line."""

from paretomerge.cli.main import app as app
from paretomerge.cli.main import main as main
from paretomerge.cli.terminal import fitting_bar as fitting_bar
from paretomerge.cli.terminal import say as say
from paretomerge.cli.terminal import show_rows as show_rows
