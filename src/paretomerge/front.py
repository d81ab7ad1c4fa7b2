"""The front: a Pareto set with all that is needed to use it, in memory or in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.evaluation.results import Row
from paretomerge.export.card import model_card
from paretomerge.export.huggingface import write_companions, write_model
from paretomerge.export.lora import adapter_files, write_lora
from paretomerge.provenance import Sources, paths_seen_from, sources_of, versions
from paretomerge.sets.pareto_set import ParetoSet, Preference
from paretomerge.weights.adapted import Adapted
from paretomerge.weights.architecture import live_names
from paretomerge.weights.checkpoint import Checkpoint
from paretomerge.weights.experts import Experts
from paretomerge.weights.hashing import hashed_meanwhile, hashes_of
from paretomerge.weights.heads import Head, head_of, heads_of
from paretomerge.weights.lazy import Weights
from paretomerge.weights.live import build_model
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.writing import (
    SHARD_BYTES,
    Progress,
    whole_folder,
    write_json,
    write_marker,
    write_safetensors,
    write_shards,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FORMAT = 1
FACTS = "pareto_set.json"
TENSORS = "pareto_set.safetensors"
HEADS = "heads"


@dataclass(frozen=True)
class Front:
    """A Pareto set, its tasks' heads and where it comes from: what ``fit`` makes and a front folder holds."""

    pareto_set: ParetoSet
    config: Mapping[str, Any]
    heads: Mapping[str, Head]
    sources: Mapping[str, Any]
    companions: Path | None
    """The folder with the tokenizer and the other files of the base."""
    folder: Path | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """The folder's tensor files and their SHA-256."""
    measured: tuple[Row, ...] = ()
    """Metrics that were measured, one row each: method, preference, task, metric, value, split, seed."""
    _applied: WeakKeyDictionary[nn.Module, Tensor] = field(default_factory=WeakKeyDictionary, repr=False, compare=False)
    _head_of: WeakKeyDictionary[nn.Module, str | None] = field(default_factory=WeakKeyDictionary, repr=False, compare=False)
    _names: WeakKeyDictionary[nn.Module, dict[str, str]] = field(default_factory=WeakKeyDictionary, repr=False, compare=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.pareto_set.tasks

    @property
    def own_rows(self) -> tuple[Row, ...]:
        """The measured rows of the set itself, without those of experts and other models."""
        own = tuple(row for row in self.measured if row["method"] == self.pareto_set.method)
        return own or self.measured  # evaluate can give the rows another name

    def at(self, preference: Preference, dtype: torch.dtype | None = None, head: str | None = None) -> Weights:
        """θ(γ), lazily; with ``head`` the whole model of that task, in its own naming (see ``ParetoSet.at``)."""
        weights = self.pareto_set.at(preference, dtype)
        if head is None:
            return weights
        own = self.head(head)
        return replace(own, tensors=self.pareto_set.on_head(head, own.tensors, preference)).on(weights, dtype)

    def model(self, preference: Preference, *, head: str | None = None, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """A live transformers model at this preference, in evaluation mode (``apply_`` moves it to another).

        Args:
            preference: γ.
            head: the task whose model it is to be; None: the base's class.
            dtype: of its weights; None: as the front stores them (half precision is slow on most CPUs).
        """
        model = build_model(self.at(preference, dtype, head), self._config(head))
        self._applied[model] = self.pareto_set.preference(preference)
        self._head_of[model] = head
        return model

    @torch.no_grad()
    def apply_(self, model: nn.Module, preference: Preference) -> nn.Module:
        """Move a live model to a preference, in place; only the tensors that vary are touched.

        From the second time on, fp32 and fp64 weights are updated by the difference of the two preferences, which for
        Pareto Merging has rank r. Narrower weights would drift, so they are set anew from the front's base.

        Args:
            model: any module whose parameters have the base's names, up to a prefix: one that ``model`` built, or the
                front's folder loaded with transformers.
            preference: γ.
        """
        gamma = self.pareto_set.preference(preference)
        since = self._applied.get(model)
        parameters = dict(model.named_parameters())
        self._apply_to_head_(model, parameters, preference)
        names = self._names.get(model)
        if names is None:
            names = self._names[model] = live_names(self.pareto_set.varying, model)
        shift = None if since is None else self.pareto_set.shift(gamma, since)
        narrow = {p.dtype for p in parameters.values() if shift is None or p.dtype.itemsize < 4}
        weights = {dtype: self.pareto_set.at(gamma, dtype) for dtype in narrow}
        task = self._head_of.get(model)
        lacks = () if task is None else self.head(task).lacks
        for name in self.pareto_set.varying:
            if name in lacks:
                continue
            parameter = parameters.get(names.get(name, ""))
            if parameter is None:
                raise UserError(f"the model has no parameter {name} of that shape: build it with front.model")
            if shift is None or parameter.dtype.itemsize < 4:
                parameter.copy_(weights[parameter.dtype][name])
            else:
                shift.add_(name, parameter)
        self._applied[model] = gamma
        return model

    def _apply_to_head_(self, model: nn.Module, parameters: Mapping[str, Tensor], preference: Preference) -> None:
        """Where the set moves the tensors of heads, too: those of the model's head, set anew."""
        if not any(self.pareto_set.varying_of_head(task) for task in self.heads):
            return
        if model not in self._head_of:
            raise UserError("this set moves the heads, too: build the model with front.model, which knows its head")
        task = self._head_of[model]
        if task is None:
            return
        tensors = self.pareto_set.on_head(task, self.head(task).tensors, preference)
        names = live_names(tensors.infos, model)
        for name in self.pareto_set.varying_of_head(task):
            parameters[names[name]].copy_(tensors[name])

    def save(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        copy_base: bool = False,
        shard_bytes: int = SHARD_BYTES,
        progress: Progress | None = None,
    ) -> None:
        """Write the front's folder: the equal-preference model as a Hugging Face checkpoint, and the set beside it.

        Of LoRA experts the equal-preference model is an adapter, too, and the base is referred to, by its path and hashes
        (``origin``); ``copy_base`` writes a whole checkpoint all the same.
        """
        tensors, facts = self.pareto_set.stored()
        adapter = None if copy_base else self._equal_adapter()
        with whole_folder(folder, overwrite=FACTS if overwrite else None) as temporary:
            if adapter:
                write_safetensors(adapter[0], temporary / "adapter_model.safetensors", progress=progress)
                write_json(temporary / "adapter_config.json", adapter[1])
                write_companions(temporary, {}, self.companions, self.pareto_set.base)
            else:
                with hashed_meanwhile(self.sources.files if isinstance(self.sources, Sources) else ()):
                    write_shards(self.pareto_set.base, temporary, shard_bytes=shard_bytes, hashed=True, progress=progress)
                write_companions(temporary, self.config, self.companions, self.pareto_set.base)
            write_safetensors(tensors, temporary / TENSORS, progress=progress)
            heads = {}
            for task, head in self.heads.items():
                (temporary / HEADS / task).mkdir(parents=True)
                write_safetensors(head.tensors, temporary / HEADS / task / "head.safetensors")
                write_json(temporary / HEADS / task / "config.json", head.config)
                heads[task] = {"prefix": head.prefix, "lacks": list(head.lacks)}
            (temporary / "README.md").write_text(self.card(), encoding="utf-8")
            write_marker(
                temporary / FACTS,
                {
                    "format": FORMAT,
                    "method": self.pareto_set.method,
                    "tasks": list(self.tasks),
                    "settings": self.pareto_set.settings,
                    "set": facts,
                    "heads": heads,
                    "sources": paths_seen_from(Path(folder), self.sources),
                    "files": {
                        file.relative_to(temporary).as_posix(): found
                        for file, found in hashes_of(temporary.rglob("*.safetensors")).items()
                    },
                    "origin": adapter[1]["base_model_name_or_path"] if adapter else None,
                    "versions": versions(),
                    "measured": list(self.measured),
                },
            )

    def pick(
        self,
        preference: Preference,
        folder: str | Path,
        *,
        head: str | None = None,
        dtype: torch.dtype | None = None,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
        progress: Progress | None = None,
        tuned: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write θ(γ) as an ordinary Hugging Face model folder; with ``head``, that task's model.

        ``tuned``: tensors in the place of the front's own (see ``fitting.tuning.tuned_tensors``).
        """
        gamma = self.pareto_set.preference(preference)
        self.write_picked(
            self.at(gamma, dtype, head), gamma, folder, head=head, shard_bytes=shard_bytes, overwrite=overwrite,
            progress=progress, tuned=tuned,
        )  # fmt: skip

    def write_picked(
        self,
        weights: Weights,
        preference: Preference,
        folder: str | Path,
        *,
        head: str | None = None,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
        progress: Progress | None = None,
        tuned: Mapping[str, Tensor] | None = None,
    ) -> None:
        """``pick``, from the ``weights`` that ``at`` gave for this preference and head."""
        facts = self.provenance(preference)
        if tuned:
            own = Weights.of({n: t.to(weights.infos[n].dtype) for n, t in tuned.items()})
            weights, facts = weights.replacing(own.infos, own.__getitem__), {**facts, "tuned": sorted(tuned)}
        write_model(
            weights,
            folder,
            config=self._config(head),
            companions=self.companions,
            provenance=facts,
            shard_bytes=shard_bytes,
            overwrite=overwrite,
            progress=progress,
        )

    def pick_lora(
        self,
        preference: Preference,
        folder: str | Path,
        *,
        head: str | None = None,
        rank: int | None = None,
        base_model: str | None = None,
        overwrite: bool = False,
    ) -> float:
        """Write θ(γ) as a PEFT adapter: on the front's folder, or on the base that a front of LoRA experts refers to.

        Args:
            preference: γ.
            folder: the folder to make.
            head: the task whose head the adapter is to bring along.
            rank: the largest rank, by truncated SVD; None: all of it.
            base_model: the name under which the adapter finds its base elsewhere.
            overwrite: replace a folder that paretomerge wrote.

        Returns:
            The relative error in the adapted matrices (Frobenius) that ``rank`` costs.

        Raises:
            UserError: a set that moves whole tensors; what ``write_lora`` raises.
        """
        pareto_set = self.pareto_set
        shift = pareto_set.shift(pareto_set.preference(preference))
        if rank is not None and rank < 1:
            raise UserError(f"rank {rank}: must be at least 1")

        def pair(name: str) -> LowRank:
            if (found := shift.pair(name)) is None:
                raise UserError(
                    f"{name}: moves by a whole tensor in this front ({pareto_set.method}), which no LoRA is: "
                    "pick a checkpoint, or fit pareto-merging"
                )
            return found

        names, where = list(pareto_set.varying), self.folder
        of: Callable[[str], LowRank] = pair
        if names:
            pair(names[0])  # a set of whole task vectors is refused as such, whatever its first tensor is
        if (found := self._on_origin()) is not None:  # the adapter brings the base merge along
            whole, where = found[0].plus(names, pair), found[1]
            names, of = sorted(whole.changed), whole.pair
        if not names:
            raise UserError("this front is one model, the same at every preference: an adapter would add nothing to it")
        return write_lora(
            names,
            of,
            folder,
            config=self._config(head),
            base_model=base_model or (str(where.resolve()) if where else ""),
            provenance=self.provenance(preference),
            head=None if head is None else dict(self.head(head).tensors),
            rank=rank,
            overwrite=overwrite,
        )

    def _on_origin(self) -> tuple[Adapted, Path] | None:
        """The equal-preference model, if it is thin products on the model in a folder, and that folder."""
        base = self.pareto_set.base
        if isinstance(base, Adapted) and isinstance(base.origin, Checkpoint) and base.origin.path.is_dir():
            return base, base.origin.path
        return None

    def _equal_adapter(self) -> tuple[Weights, dict[str, Any]] | None:
        """The equal-preference model as an adapter's two files, if that is all it is to a model folder on disk."""
        found = self._on_origin()
        if found is None or not self.config or any(found[0].infos[n] != found[0].origin.infos[n] for n in found[0].infos):
            return None
        try:
            return adapter_files(
                sorted(found[0].changed), found[0].pair, config=self.config, base_model=str(found[1].resolve())
            )
        except UserError:  # something that PEFT cannot adapt
            return None

    def summary(self) -> dict[str, Any]:
        """What the front holds, for people and for JSON."""
        stored, _ = self.pareto_set.stored()
        parameters = sum(info.numel for info in self.pareto_set.base.infos.values())
        added = self.pareto_set.added_parameters()
        return {
            "method": self.pareto_set.method,
            "tasks": list(self.tasks),
            "parameters": {
                "base": parameters,
                "added": added,
                "added_share": round(added / parameters, 6),
                "added_bytes": stored.nbytes,
                "varying_tensors": len(self.pareto_set.varying),
            },
            "settings": self.pareto_set.settings,
            "heads": sorted(self.heads),
            "sources": {"base": self.sources["base"]["path"]}
            | {task: source["path"] for task, source in self.sources["experts"].items()},
            "measured": len(self.measured),
        }

    def provenance(self, preference: Preference | None = None) -> dict[str, Any]:
        """How a model came about: for ``paretomerge.json`` and the card."""
        facts: dict[str, Any] = {"method": self.pareto_set.method, "settings": self.pareto_set.settings}
        if preference is not None:
            gamma = self.pareto_set.preference(preference)
            facts["preference"] = dict(zip(self.tasks, gamma.tolist(), strict=True))
            if metrics := self.metrics(gamma):
                facts["metrics"] = metrics
        return {**facts, "sources": dict(self.sources), "versions": versions()}

    def metrics(self, preference: Preference) -> list[dict[str, Any]]:
        """What is known of θ(γ): task, metric, value, and how it is known (measured on …, or interpolated)."""
        from paretomerge.report.tables import measured, metrics_of  # it looks at fronts, so it is above this module

        known = measured(self.measured, self.tasks, self.pareto_set.method)
        return metrics_of(known, self.pareto_set.preference(preference).tolist())

    def card(self) -> str:
        """The front's model card."""
        from paretomerge.report.tables import card_table

        table = card_table(self.measured, self.tasks, self.pareto_set.method)
        equal = preferences.equal(len(self.tasks))
        return model_card({**self.provenance(), "kind": "front", "table": table, "metrics": self.metrics(equal)})

    def head(self, task: str) -> Head:
        """The head of one task (see ``head_of``)."""
        return head_of(self.heads, task, self.tasks)

    def _config(self, head: str | None) -> Mapping[str, Any]:
        return self.config if head is None else self.head(head).config


def front_of(pareto_set: ParetoSet, experts: Experts, *, hashes: bool = True) -> Front:
    """A front in memory: a set, with what its experts bring along (heads, configuration, provenance)."""
    base = experts.base
    path = getattr(base, "path", None)
    return Front(
        pareto_set,
        base.config if isinstance(base, Checkpoint) else {},
        heads_of(experts),
        Sources(experts) if hashes else sources_of(experts, hashes=False),
        path if path and path.is_dir() else None,
    )
