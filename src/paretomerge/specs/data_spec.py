"""Where a task's data are, as a recipe says it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from paretomerge.errors import UserError
from paretomerge.specs.strict_yaml import parse_yaml


class DataSpec(BaseModel):
    """Where a task's data are; what is left out is found, and said in ``Task.said``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """A file, a folder or a hub data set (see ``sources.read_splits``), or ``module:function``, which returns a Task."""
    subset: str | None = None
    """The configuration of a hub data set."""
    fit: str | None = None
    """A split's name, or other data: to fit on."""
    evaluate: str | None = None
    """A split's name, or other data: to measure on."""
    text: str | None = None
    text_pair: str | None = None
    image: str | None = None
    label: str | None = None
    max_length: PositiveInt | None = None
    """Tokens of a text at most; of a language model's block exactly."""
    fit_inputs: PositiveInt | None = None
    """Largest number of inputs to fit on; a random choice if there are more."""
    evaluate_inputs: PositiveInt | None = None
    """Largest number of inputs to measure on."""
    transductive: bool = False
    """Fit on the evaluation inputs, without their labels."""
    classes: list[str] | None = None
    """The data's names of the head's classes, in the head's order; for a zero-shot head, the names to put in templates."""
    templates: list[str] | None = None
    """Prompts of a zero-shot head, each with {} for the class."""
    prompts: str | None = None
    """A YAML file with both, ``classes`` and ``templates``, for what is not said here."""


class PromptFile(BaseModel):
    """What ``prompts`` names: a YAML file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: list[str]
    """In the order of the data's class numbers."""
    templates: list[str]


def read_prompts(path: str) -> PromptFile:
    """The classes and templates in a file.

    Raises:
        UserError: it cannot be read, or has something else in it.
    """
    try:
        return PromptFile.model_validate(parse_yaml(Path(path).read_text(encoding="utf-8"), path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: classes and templates are expected, lists of text ({first['loc']}: {first['msg']})") from None
