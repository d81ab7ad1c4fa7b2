"""The front: a Pareto set with all that is needed to use it, in memory or in a folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from paretomerge import preferences
from paretomerge.errors import UserError
from paretomerge.experts.architecture import live_names
from paretomerge.experts.experts import Experts
from paretomerge.experts.heads import NO_HEAD, Head, chosen_head, head_of, heads_of
from paretomerge.experts.in_memory import companions_of, config_of
from paretomerge.experts.live_tensors import Stamp, bare, live_tensors, places, stamp
from paretomerge.front.adapter_folder import adapter_files, write_lora
from paretomerge.front.card import model_card
from paretomerge.front.loading_code import loading_code
from paretomerge.front.model_folder import write_companions, write_model
from paretomerge.front.provenance import Sources, paths_seen_from, sources_of, versions
from paretomerge.front.saving import About
from paretomerge.models.build import build_model
from paretomerge.results.rows import Row
from paretomerge.sets.pareto_set import ParetoSet, Preference
from paretomerge.weights.adapted import Adapted
from paretomerge.weights.checkpoint import Checkpoint
from paretomerge.weights.finite import finite
from paretomerge.weights.hashing import hashed_meanwhile, hashes_of
from paretomerge.weights.lazy import Weights
from paretomerge.weights.low_rank import LowRank
from paretomerge.weights.unchanged import States, reading, touched
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


class _Applied(NamedTuple):
    """What a live model holds: the preference it was moved to, and how its tensors looked then."""

    gamma: Tensor
    stamp: Stamp
    places: dict[str, list[str]] | None = None
    """The front's name -> its names in the model; None: not looked for yet."""


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
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How it was asked for, as a recipe says it: method, options, on, data; the models' paths are in ``sources``."""
    identity: str | None = None
    """Of the set in ``folder`` (see ``changing.identity_of``)."""
    states: States = frozenset()
    """The files that were opened, as they were then."""
    _applied: WeakKeyDictionary[nn.Module, _Applied] = field(default_factory=WeakKeyDictionary, repr=False, compare=False)
    _head_of: WeakKeyDictionary[nn.Module, str | None] = field(default_factory=WeakKeyDictionary, repr=False, compare=False)

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
        touched(self.states)
        gamma = self.pareto_set.preference(preference)
        weights = self.pareto_set.at(gamma, dtype)
        if head is not None and (head := self._chosen(head)) is not None:
            own = self.head(head)
            weights = replace(own, tensors=self.pareto_set.on_head(head, own.tensors, gamma)).on(weights, dtype)
        return weights.with_about(partial(self._about, gamma, head, dtype))

    def _about(self, gamma: Tensor, head: str | None, dtype: torch.dtype | None) -> About:
        """How a model of this front came about; one with a head has no other."""
        facts = self.provenance(gamma, head)
        return About(self._config(head), self.companions, facts, {} if head else self.heads, self.tasks, dtype)

    def _chosen(self, head: str | None) -> str | None:
        """The task whose head is to be exported (see ``chosen_head``)."""
        return chosen_head(self.heads, head, self.tasks)

    def model(self, preference: Preference, *, head: str | None = None, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """A live transformers model at this preference, in evaluation mode (``apply_`` moves it to another).

        Args:
            preference: γ.
            head: the task whose model it is to be; None or ``"none"``: the base's class.
            dtype: of its weights; None: as the front stores them (half precision is slow on most CPUs).
        """
        head = None if head is None else self._chosen(head)
        with reading():
            model = build_model(self.at(preference, dtype, head), self._config(head))
        self._head_of[model] = head
        self._applied[model] = _Applied(self.pareto_set.preference(preference), stamp(live_tensors(model).values()))
        return model

    @torch.no_grad()
    def apply_(self, model: nn.Module, preference: Preference) -> nn.Module:
        """Move a live model to a preference, in place.

        A model that this front has not seen, or that somebody has changed since (``load_state_dict``, training, …), gets all
        tensors of the merge, so it may hold the pretrained base, the front's folder or anything else of this architecture; its
        own head stays. After that, only the tensors that vary are touched: fp32 and fp64 weights are updated by the difference
        of the two preferences, which for Pareto Merging has rank r. Narrower weights would drift, so they are set anew from
        the front's base.

        Args:
            model: one that ``model`` built, or any whose parameters have the base's names, up to a prefix; compiled, in
                DataParallel, or offloaded to the CPU by accelerate as it may be.
            preference: γ.

        Returns:
            The model.

        Raises:
            UserError: nothing is changed then. The model is quantised, sharded, offloaded to disk or carries PEFT adapters;
                it lacks a tensor, or has one of another shape or layers that the front lacks; no such task.
        """
        gamma = self.pareto_set.preference(preference)
        live = bare(model)
        last = self._applied.get(live)
        task = self._head_of.get(live)
        tensors = live_tensors(live)
        moves_head = self._head_to_move(live)
        changed = last is None or not last.stamp.same(stamp(tensors.values()))
        known = None if last is None or changed else last.places
        placed = self._places(live, tensors, whole=changed) if known is None else known
        names = [*self.pareto_set.varying, *(set(placed) - set(self.pareto_set.varying) if changed else ())]
        shift = None if last is None or changed else self.pareto_set.shift(gamma, last.gamma)
        set_anew = {tensor.dtype for tensor in tensors.values() if shift is None or tensor.dtype.itemsize < 4}
        weights = {dtype: self.pareto_set.at(gamma, dtype) for dtype in set_anew}
        in_inference = any(tensor.is_inference() for tensor in tensors.values())  # then nothing else may write into them
        self._applied.pop(live, None)  # whatever ends this halfway, the next call sets everything anew
        with torch.inference_mode() if in_inference else torch.no_grad():
            for name in names:
                for place in placed.get(name, ()):
                    tensor = tensors[place]
                    if shift is None or tensor.dtype.itemsize < 4:
                        tensor.copy_(weights[tensor.dtype][name])
                    else:
                        shift.add_(name, tensor)
            if moves_head:
                assert task is not None
                head = self.pareto_set.on_head(task, self.head(task).tensors, gamma)
                in_model = live_names(head.infos, live)
                for name in head.infos if changed else self.pareto_set.varying_of_head(task):
                    tensors[in_model[name]].copy_(head[name])
        self._applied[live] = _Applied(gamma, stamp(tensors.values()), placed)
        return model

    def _places(self, model: nn.Module, tensors: Mapping[str, Tensor], *, whole: bool) -> dict[str, list[str]]:
        """Where the model has the front's tensors: all of them, or those that vary (see ``places``)."""
        if model in self._head_of:
            task = self._head_of[model]
            lacks: Collection[str] = () if task is None else self.head(task).lacks
            heads: Collection[str] = () if task is None else self.head(task).tensors
        else:
            lacks = {name for head in self.heads.values() for name in head.lacks}
            heads = {name for head in self.heads.values() for name in head.tensors}
        infos, varying = self.pareto_set.base.infos, self.pareto_set.varying
        return places(infos, varying, model, tensors, heads=heads, lacks=lacks, whole=whole)

    def _head_to_move(self, model: nn.Module) -> bool:
        """Whether the model has a head that this set moves.

        Raises:
            UserError: nobody knows which one it has.
        """
        if not any(self.pareto_set.varying_of_head(task) for task in self.heads):
            return False
        if model not in self._head_of:
            raise UserError("this set moves the heads, too: build the model with front.model, which knows its head")
        return self._head_of[model] is not None

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
            touched(self.states)
            if adapter:
                write_safetensors(adapter[0], temporary / "adapter_model.safetensors", progress=progress)
                write_json(temporary / "adapter_config.json", adapter[1])
                write_companions(temporary, {}, self.companions, self.pareto_set.base)
            else:
                with hashed_meanwhile(self.sources.files if isinstance(self.sources, Sources) else ()):
                    write_shards(
                        self.pareto_set.base, temporary, shard_bytes=shard_bytes, hashed=True, index=True, progress=progress
                    )
                write_companions(temporary, self.config, self.companions, self.pareto_set.base)
            write_safetensors(finite(tensors), temporary / TENSORS, progress=progress)
            heads = {}
            for task, head in self.heads.items():
                (temporary / HEADS / task).mkdir(parents=True)
                write_safetensors(finite(head.tensors), temporary / HEADS / task / "head.safetensors")
                write_json(temporary / HEADS / task / "config.json", head.config)
                heads[task] = {"prefix": head.prefix, "lacks": list(head.lacks)} | (
                    {"names": dict(head.names)} if head.names else {}
                )
            loading = [] if adapter else loading_code(self.config, temporary)
            (temporary / "README.md").write_text(self.card(loading), encoding="utf-8")
            write_marker(
                temporary / FACTS,
                {
                    "format": FORMAT,
                    "method": self.pareto_set.method,
                    "tasks": list(self.tasks),
                    "settings": self.pareto_set.settings,
                    "recipe": dict(self.recipe),
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

    @reading()
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
        """Write θ(γ) as an ordinary Hugging Face model folder.

        Args:
            preference: γ.
            folder: the folder to make.
            head: where tasks have heads of their own: the task whose model it is to be, or ``"none"`` for the base's own class.
            dtype: of the weights; None: as the front stores them.
            shard_bytes: largest file.
            overwrite: replace a folder that paretomerge wrote.
            progress: called after each tensor.
            tuned: tensors in the place of the front's own (see ``fitting.tuning.tuned_tensors``).

        Raises:
            UserError: tasks have heads, and none is chosen; a folder that exists.
        """
        gamma, head = self.pareto_set.preference(preference), self._chosen(head)
        self.write_picked(
            self.at(gamma, dtype, head), gamma, folder, head=head, shard_bytes=shard_bytes, overwrite=overwrite,
            progress=progress, tuned=tuned,
        )  # fmt: skip

    @reading()
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
        """``pick``, from the ``weights`` that ``at`` gave for this preference and head (None: the base's own class)."""
        touched(self.states)
        facts = self.provenance(preference, head)
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

    @reading()
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
            head: the task whose head the adapter is to bring along, or ``"none"``; to be chosen where tasks have heads.
            rank: the largest rank, by truncated SVD; None: all of it.
            base_model: the name under which the adapter finds its base elsewhere.
            overwrite: replace a folder that paretomerge wrote.

        Returns:
            The relative error in the adapted matrices (Frobenius) that ``rank`` costs.

        Raises:
            UserError: a set that moves whole tensors; what ``write_lora`` raises.
        """
        touched(self.states)
        pareto_set = self.pareto_set
        shift = pareto_set.shift(pareto_set.preference(preference))
        if rank is not None and rank < 1:
            raise UserError(f"rank {rank}: must be at least 1")
        head = self._chosen(head)

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
            provenance=self.provenance(preference, head),
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

    def provenance(self, preference: Preference | None = None, head: str | None = None) -> dict[str, Any]:
        """How a model came about: for ``paretomerge.json`` and the card; numbers only of tasks that its ``head`` can do."""
        facts: dict[str, Any] = {"method": self.pareto_set.method, "settings": self.pareto_set.settings}
        if self.recipe:
            facts["recipe"] = dict(self.recipe)
        if preference is not None:
            gamma = self.pareto_set.preference(preference)
            facts["preference"] = dict(zip(self.tasks, gamma.tolist(), strict=True))
            if self.heads:
                facts["head"] = head or NO_HEAD
            if metrics := [m for m in self.metrics(gamma) if m["task"] in (head, *(set(self.tasks) - set(self.heads)))]:
                facts["metrics"] = metrics
        return {**facts, "sources": dict(self.sources), "versions": versions()}

    def metrics(self, preference: Preference) -> list[dict[str, Any]]:
        """What was measured of θ(γ): task, metric, value, and how. Estimates between measured preferences are no results."""
        from paretomerge.front.tables import metrics_of
        from paretomerge.results.measured import measured

        known = measured(self.measured, self.tasks, self.pareto_set.method)
        return metrics_of(known, self.pareto_set.preference(preference).tolist())

    def card(self, loading: Sequence[str] = ()) -> str:
        """The front's model card; ``loading``: the lines of Python that load its folder."""
        from paretomerge.front.tables import card_table

        table = card_table(self.measured, self.tasks, self.pareto_set.method)
        equal = preferences.equal(len(self.tasks))
        facts = {**self.provenance(), "kind": "front", "table": table, "metrics": self.metrics(equal)}
        return model_card({**facts, **({"head": NO_HEAD} if self.heads else {})}, loading)

    def head(self, task: str) -> Head:
        """The head of one task (see ``head_of``)."""
        return head_of(self.heads, task, self.tasks)

    def _config(self, head: str | None) -> Mapping[str, Any]:
        return self.config if head is None else self.head(head).config


def front_of(pareto_set: ParetoSet, experts: Experts, *, hashes: bool = True) -> Front:
    """A front in memory: a set, with what its experts bring along (heads, configuration, provenance)."""
    return Front(
        pareto_set,
        config_of(experts.base),
        heads_of(experts),
        Sources(experts) if hashes else sources_of(experts, hashes=False),
        companions_of(experts.base),
    )
