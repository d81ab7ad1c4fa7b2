"""Where a task's data are, as a recipe says it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt


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
    limit_fit: PositiveInt | None = None
    limit_evaluate: PositiveInt | None = None
    transductive: bool = False
    """Fit on the evaluation inputs, without their labels."""
    classes: list[str] | None = None
    """The data's names of the head's classes, in the head's order; for a zero-shot head, the names to put in templates."""
    templates: list[str] | None = None
    """Prompts of a zero-shot head, each with {} for the class."""
