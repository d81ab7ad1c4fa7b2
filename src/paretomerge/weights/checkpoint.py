"""Checkpoints on disk: Hugging Face folders (single or sharded safetensors) and plain ``.safetensors`` files.

Only headers are read until a tensor is asked for; a tensor that is asked for is a view of the memory-mapped file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from paretomerge.errors import UserError
from paretomerge.io.strict_json import untagged
from paretomerge.weights.companions import FETCHED, NOT_FETCHED
from paretomerge.weights.hub import mirrored
from paretomerge.weights.lazy import PART, Rows, TensorInfo, Weights, matrix_shape
from paretomerge.weights.quantised import refuse_quantised
from paretomerge.weights.rows import StoredRows, shorter
from paretomerge.weights.unchanged import States, states_of, touched

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names of dtypes."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_PICKLES = ("pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class Checkpoint(Weights):
    """Weights in files: ``path``, the parsed ``config`` ({} where there is none) and ``files`` (name -> file)."""

    def __init__(
        self,
        path: Path,
        files: list[Path],
        config: Mapping[str, Any],
        beside: States = frozenset(),
        index: Mapping[str, str] | None = None,
    ) -> None:
        """``beside``: the states of what was read already, ``config.json`` for instance; ``index``: name -> its file's name."""
        self.path = path
        self.states: States = beside | states_of(files)
        self.config = dict(config)
        self.files: dict[str, Path] = {}
        self.passed_over: dict[str, Path] = {}
        """Tensors that a second file holds, too: name -> that file, which the index does not name."""
        self._starts: dict[Path, dict[str, int]] = {}  # where in its file each tensor begins
        handles = {}
        infos: dict[str, TensorInfo] = {}
        for file in files:
            handles[file] = handle = _open(file)
            self._starts[file] = starts = _starts(file)
            # in the order of the file: what reads and writes models tensor by tensor then goes through it once, and nothing
            # that the system has read ahead is lost (by name, half as much again was read)
            for name in sorted(handle.keys(), key=lambda name: (starts.get(name, 0), name)):
                if index and index.get(name, file.name) != file.name:
                    self.passed_over[name] = file
                    continue
                if name in infos:
                    raise UserError(f"{file}: {name} is also in {self.files[name].name}: remove one of the two files")
                slice_ = handle.get_slice(name)
                if (dtype := DTYPES.get(slice_.get_dtype())) is None:
                    refuse_quantised(path, {}, [(file, name, slice_.get_dtype())])
                    raise UserError(f"{file}: {name}: dtype {slice_.get_dtype()} is not supported: store it as BF16")
                infos[name] = TensorInfo(tuple(slice_.get_shape()), dtype)
                self.files[name] = file

        self._states = {file: os.stat(file) for file in files}
        touched(self.states)

        def read(name: str) -> Tensor:
            touched(self.states)
            file = self.files[name]
            if _shrunk(file, self._states[file].st_size):
                raise UserError(shorter(file))
            try:
                return handles[file].get_tensor(name)
            except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
                raise unreadable(file, error) from error

        def parts(name: str) -> Iterator[Tensor]:
            m, n = matrix_shape(infos[name].shape)
            rows, step = self.matrix(name), max(1, PART // max(1, n * infos[name].dtype.itemsize))
            return (rows[first : first + step] for first in range(0, m, step))

        super().__init__(infos, read, parts)

    def matrix(self, name: str) -> Rows:
        """Tensor ``name`` in slices of rows that are read from its file, not from the map: so a large model streams."""
        file = self.files[name]
        touched(self.states)
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # it has vanished: the map keeps it
            return super().matrix(name)
        if not os.path.samestat(os.fstat(descriptor), self._states[file]):  # another file by its name
            os.close(descriptor)
            return super().matrix(name)
        return StoredRows(file, descriptor, self._starts[file][name], self.infos[name], lambda: self[name])

    @property
    def sources(self) -> list[Path]:
        """The files that hold the tensors, in order."""
        return sorted(set(self.files.values()))

    @property
    def vocabulary(self) -> int | None:
        """Number of tokens that the configuration promises, where it names one."""
        config = self.config.get("text_config") if "vocab_size" not in self.config else self.config
        size = config.get("vocab_size") if isinstance(config, dict) else None
        return size if isinstance(size, int) and not isinstance(size, bool) else None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model folder, a ``.safetensors`` file, or a repository of the hub (``org/name`` or ``org/name@revision``).

    Raises:
        UserError: nothing there, pickled weights only, a damaged file, an index that does not fit its shards; a quantised
            model.
    """
    path = local(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            if path.suffix in {Path(pattern).suffix for pattern in _PICKLES}:
                raise _pickled([path], path.with_suffix(".safetensors"))
            raise UserError(f"{path}: not a model folder and not a .safetensors file")
        return _in_full_precision(Checkpoint(path, [path], {}))
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise UserError(f"{path}: a LoRA adapter: it can be an --expert, but the --base must be a full model")
    beside = states_of((path / "config.json", path / INDEX))
    config = read_json(path / "config.json") if (path / "config.json").exists() else {}
    refuse_quantised(path, config)  # first: such files may hold dtypes that are not read
    files, index = _shards(path)
    return _in_full_precision(Checkpoint(path, files, config, beside, index))


def _in_full_precision(checkpoint: Checkpoint) -> Checkpoint:
    names = {dtype: name for name, dtype in DTYPES.items()}
    tensors = ((checkpoint.files[name], name, names[info.dtype]) for name, info in checkpoint.infos.items())
    refuse_quantised(checkpoint.path, {}, tensors)
    return checkpoint


def local(path: str | Path) -> Path:
    """The local path of a model; a name that is no local path but looks like ``org/name`` is fetched from the hub."""
    found = Path(path).expanduser()
    try:
        if found.exists():
            return found
    except OSError as error:  # a name that no file can have
        raise UserError(f"{str(path)[:80]}: {error.strerror}") from error
    name = str(path)
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise UserError(f"{path}: no such file or folder")
    if (folder := mirrored(name)) is not None:
        return folder
    from huggingface_hub import snapshot_download  # only where the hub is asked: importing it costs 0.3 s

    repository, _, revision = name.partition("@")
    wanted, unwanted = list(FETCHED), list(NOT_FETCHED)
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted, ignore_patterns=unwanted))
    except Exception as error:  # whatever its client raises: offline, 404, 401, interrupted
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: no such folder here, and not to be had from the hub ({reason})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a line that says what is wrong with it; a key that is given twice is wrong."""
    value = _read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON object is expected, not {type(value).__name__}")
    return value


def _read_json(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for ever, a device never end
            raise ValueError("no regular file")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> Any:
    """An object whose keys are different: of two values of one key, readers take one or the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise ValueError(f"{twice[:80]!r} is given twice")
    return untagged(found)


def _shards(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors files of a model folder, and what its index says: tensor -> file name."""
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise UserError(f"{folder / INDEX}: has no valid weight_map: download the model again")
        for file in sorted(set(weight_map.values())):
            # an index may only name files beside it: "../../x" would read, and list, what is not the model's
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise UserError(f"{folder / INDEX}: names {file!r}, which is not a .safetensors file of this folder")
            if not (folder / file).exists():
                raise UserError(f"{folder / file}: missing, though {INDEX} names it: download the model again")
        files = [folder / file for file in sorted(set(weight_map.values()))]
        held = {name for file in files for name in _open(file).keys()}  # noqa: SIM118
        if missing := sorted(set(weight_map) - held):
            raise UserError(f"{folder / INDEX}: {missing[0]} is in none of the files it names: download the model again")
        return files, weight_map
    if (folder / SINGLE).exists():
        return [folder / SINGLE], {}
    files = sorted(folder.glob("*.safetensors"))
    files = [file for file in files if not file.name.startswith("consolidated")] or files  # the same weights a second time
    if len(files) == 1:
        return files, {}
    if files:
        raise UserError(
            f"{folder / INDEX}: is missing, and says how the {len(files)} .safetensors files go together: download it"
        )
    for pattern in _PICKLES:
        if pickles := sorted(folder.glob(pattern)):
            raise _pickled(pickles, folder / SINGLE)
    raise UserError(f"{folder}: no model in it (no {SINGLE}, no {INDEX})")


def _open(file: Path) -> Any:
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{file}: no regular file")
        return safe_open(file, framework="pt")
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: Exception) -> UserError:
    """What a file's reader says, with the cure: a limit on memory, a pickle by another name, a damaged file."""
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "unable to mmap" in said or "Cannot allocate memory" in said:
        need = f"{file.stat().st_size / 2**30:.1f} GiB of address space" if file.exists() else "address space"
        return UserError(f"{file}: cannot be mapped into memory ({need} needed): raise the limit (ulimit -v, control group)")
    if isinstance(error, FileNotFoundError | PermissionError):
        return UserError(f"{file}: cannot be read ({error.strerror or said})")
    try:
        with open(file, "rb") as stream:
            start = stream.read(4)
    except OSError:
        start = b""
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return _pickled([file], file.with_name(f"{file.stem}-converted.safetensors"))
    return UserError(f"{file}: not a valid safetensors file ({said}): download it again")


def _starts(file: Path) -> dict[str, int]:
    """Where each tensor of a file begins that safetensors has found to be sound."""
    try:
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
    except (OSError, ValueError) as error:
        raise unreadable(file, error) from error
    return {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _shrunk(file: Path, size: int) -> bool:
    """Whether a mapped file ends earlier than it did: to read beyond its end is the death of the process (SIGBUS)."""
    try:
        return os.stat(file).st_size < size
    except OSError:  # removed or renamed: the map keeps what was there
        return False


def _pickled(files: list[Path], target: Path) -> UserError:
    convert = (
        "import sys, torch, safetensors.torch as s; s.save_file({k: v.clone().contiguous() for f in sys.argv[2:] for k, v in "
        'torch.load(f, map_location="cpu", weights_only=True).items()}, sys.argv[1], metadata={"format": "pt"})'
    )
    command = shlex.join(["python", "-c", convert, str(target), *map(str, files)])
    return UserError(f"{files[0]}: pickled weights can run code and are not read. Convert them once: {command}")
