"""``paretomerge relocate``: tell a front where its sources are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretomerge.errors import UserError


def relocate(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    base: Annotated[str | None, typer.Option("--base", metavar="PATH", help="Where the base is now.")] = None,
    expert: Annotated[
        list[str] | None, typer.Option("--expert", metavar="NAME=PATH", help="Where an expert is now; may be repeated.")
    ] = None,
) -> None:
    """Tell a front where its base and experts are now; the files must be the same.

    A front of LoRA experts refers to its base and opens on it; others need their sources for verify and evaluate --experts.
    What lies in the front's folder or beside it is found without this when all move together.
    """
    from paretomerge.front.verify import relocate as moved
    from paretomerge.recipes.flag_values import parse_pairs

    if base is None and not expert:
        raise UserError("what has moved? Name it: --base PATH, --expert NAME=PATH")
    moved(front, base, parse_pairs(expert or [], "--expert", "math=models/math"))
