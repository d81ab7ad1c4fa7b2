"""Whether a front's files and sources are still what they were, and telling it where they have gone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from paretomerge.errors import UserError
from paretomerge.front.changing import changing
from paretomerge.front.folder import load_front
from paretomerge.front.front import FACTS, Front
from paretomerge.front.provenance import paths_found_from, paths_seen_from
from paretomerge.weights.checkpoint import local, open_checkpoint, read_json
from paretomerge.weights.hashing import hashes_of
from paretomerge.weights.lora_files import Adapter, is_adapter, open_adapter
from paretomerge.weights.writing import replace_json, with_index


class Check(NamedTuple):
    """One thing that was looked at."""

    what: str
    """A file, or a measured number."""
    state: Literal["same", "changed", "missing", "unknown"]
    """unknown: nothing is recorded that it could be compared with."""
    message: str = ""


def verify_files(front: Front) -> list[Check]:
    """Hash the front's own tensor files and its sources again, and compare with what is recorded.

    Raises:
        UserError: a front in memory.
    """
    if front.folder is None:
        raise UserError("only a front in a folder can be verified: save it first")
    recorded: dict[Path, str | None] = {front.folder / name: found for name, found in front.files.items()}
    cures = dict.fromkeys(recorded, "fit the front again")
    flags = {"--base ": front.sources["base"]}
    flags |= {f"--expert {shlex.quote(task)}=": source for task, source in front.sources["experts"].items()}
    for flag, source in flags.items():
        path = Path(source["path"])
        for name, found in source["files"].items():
            file = path / name if path.name != name else path
            recorded[file] = found
            cures[file] = f"if it was moved, paretomerge relocate {shlex.quote(str(front.folder))} {flag}PATH"
    there = {file for file in recorded if file.is_file()}
    now = hashes_of(file for file in there if recorded[file] is not None)
    checks = []
    for file, before in recorded.items():
        if file not in there:
            checks.append(Check(str(file), "missing", f"not there any more: {cures[file]}"))
        elif before is None:
            checks.append(Check(str(file), "unknown", "no hash was recorded"))
        else:
            same = now[file] == before
            checks.append(Check(str(file), "same" if same else "changed", "" if same else "other bytes than were recorded"))
    return checks


def failed(checks: Sequence[Check]) -> list[Check]:
    """What is not as it was."""
    return [check for check in checks if check.state in ("changed", "missing")]


def relocate(folder: str | Path, base: str | Path | None = None, experts: Mapping[str, str | Path] | None = None) -> None:
    """Tell a front where its sources are now.

    Args:
        folder: the front.
        base: the base's new path; None: it is where it was. A front of LoRA experts is opened on it.
        experts: task -> the expert's new path. All must hold the same files, by their SHA-256 where that is recorded.

    Raises:
        UserError: other files, or a task that the front has not.
    """
    folder = Path(folder).expanduser()
    before = read_json(folder / FACTS) if (folder / FACTS).exists() else {}
    refers = before.get("origin") is not None
    front = load_front(folder, base=base if refers else None)  # on the new base its tensors fit
    if unknown := sorted(set(experts or {}) - set(front.sources["experts"])):
        raise UserError(f"{unknown[0]}: no expert of this front (its experts: {', '.join(front.sources['experts'])})")
    moved = {task: (before["sources"]["experts"][task], path) for task, path in (experts or {}).items()}
    if base is not None:
        moved[""] = before["sources"]["base"], base
    places = {task: str(_same_files(path, source["files"])) for task, (source, path) in moved.items()}
    with changing(folder, front.identity) as facts:
        for task, place in places.items():
            source = facts["sources"]["experts"][task] if task else facts["sources"]["base"]
            source["path"] = place
        facts["sources"] = paths_seen_from(folder, paths_found_from(folder, facts["sources"]))
        if base is not None and refers:
            facts["origin"] = where = str(local(base).resolve())
            adapter = folder / "adapter_config.json"
            replace_json(adapter, {**read_json(adapter), "base_model_name_or_path": where})
        replace_json(folder / FACTS, with_index(folder, facts))


def _same_files(path: str | Path, files: Mapping[str, str | None]) -> Path:
    """The model's absolute path, if it holds these files."""
    there = local(path).absolute()
    model = open_adapter(there) if is_adapter(there) else open_checkpoint(there)
    found = [file for file in (model.file,) if file] if isinstance(model, Adapter) else model.sources
    if {file.name for file in found} != set(files):
        raise UserError(f"{path}: has other files than the front's source: {', '.join(sorted(files)) or 'it was in memory'}")
    for file in found:
        if files[file.name] not in (None, hashes_of([file])[file]):
            raise UserError(f"{file}: is not the file that the front was made from: name the same model")
    return there
