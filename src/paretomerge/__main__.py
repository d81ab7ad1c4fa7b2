"""``python -m paretomerge``, and ``torchrun … -m paretomerge``: the command line."""

from paretomerge.cli.main import main

main()
