"""Whatever transformers loads or builds: its errors as one line, and never the code that a model brings along."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from paretomerge.errors import UserError

Kind = Literal["AutoTokenizer", "AutoImageProcessor"]
_KINDS = {"AutoTokenizer": "tokenizer", "AutoImageProcessor": "image processor (preprocessor_config.json)"}


def load_beside(folder: Path | None, kind: Kind) -> Any:
    """The tokenizer or image processor in a model's folder. It is looked for there alone, and runs no code from there.

    Raises:
        UserError: there is none that transformers can load.
    """
    import transformers
    from transformers.utils import logging

    what = _KINDS[kind]
    if folder is None or not folder.is_dir():
        raise UserError(f"the base is no folder with a {what} in it")
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with one_line(f"{folder}: no {what} that transformers can load"):
            return getattr(transformers, kind).from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    finally:
        logging.set_verbosity(level)


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn whatever a library raises in the block into a line that begins with ``what``.

    A configuration from anywhere makes it raise nearly anything; a lack of memory stays one.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        if "can't allocate memory" in said or "out of memory" in said:
            raise
        raise UserError(f"{what} ({said[:300]})") from error
