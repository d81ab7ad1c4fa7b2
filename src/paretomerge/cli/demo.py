"""``paretomerge demo``: the whole job on models that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretomerge.cli.flags import (
    Json,
    Overwrite,
    Quiet,
)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the front and its picture.")] = Path(
        "paretomerge-demo"
    ),
    fit: Annotated[bool, typer.Option("--fit", help="Fit on unlabelled images, too, with three seeds (minutes).")] = False,
    seed: Annotated[int, typer.Option(help="Of the closed form's random start.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Do the whole job on a small vision transformer and its experts, which come with the package."""
    from paretomerge.demo.run import run

    run(output, fit=fit, seed=seed, overwrite=overwrite, quiet=quiet, as_json=as_json)
