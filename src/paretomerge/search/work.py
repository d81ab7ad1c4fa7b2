"""What a worker of a search does: merge at c, and let the judge measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from paretomerge.evaluation.evaluators import Judge
from paretomerge.evaluation.outcomes import Measure
from paretomerge.search.merged import Ingredients
from paretomerge.weights.lazy import Weights

_NOTHING = Weights.of({})


@dataclass(frozen=True)
class SearchWork:
    """``parallel.Work`` of a search."""

    judge: Judge
    ingredients: Ingredients

    def opened(self) -> Measure:
        return self.judge.opened(self.ingredients)

    def weights(self) -> Mapping[str, Weights]:
        heads = {f"head {task}": head.tensors for task, head in self.ingredients.heads.items()}
        return {"base": self.ingredients.base, "vectors": self.ingredients.vectors, **heads}

    def without_weights(self) -> SearchWork:
        heads = {task: replace(head, tensors=_NOTHING) for task, head in self.ingredients.heads.items()}
        return replace(self, ingredients=replace(self.ingredients, base=_NOTHING, vectors=_NOTHING, heads=heads))

    def with_weights(self, weights: Mapping[str, Weights]) -> SearchWork:
        own = self.ingredients
        heads = {task: replace(head, tensors=weights[f"head {task}"]) for task, head in own.heads.items()}
        return replace(self, ingredients=replace(own, base=weights["base"], vectors=weights["vectors"], heads=heads))
