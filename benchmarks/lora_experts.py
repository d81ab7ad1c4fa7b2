"""Merging LoRA adapters of a large model without ever building a dense task vector: time, memory, bytes written.

    .venv/bin/python benchmarks/lora_experts.py            # a Llama of 6.7 B parameters and eight adapters of rank 16
    .venv/bin/python benchmarks/lora_experts.py --small    # does it run?

The base (bfloat16, 13.5 GB) is a sparse file of zeros, so it takes no room on disk; its adapters on every linear module are
random. Each command is a process of its own; memory is the peak of its anonymous pages, as in ``merge_speed.py``. The
figures of a run are in ``results/lora_experts.json``. Limit: 2 GiB.
"""

import argparse
import json
import struct
import tempfile
from pathlib import Path

import torch
from merge_speed import HERE, MIB, OURS, measure
from safetensors.torch import save_file

LIMIT = 2048
SHAPES = {"small": (4, 256, 688, 1000), "7B": (32, 4096, 11008, 32000)}
TASKS, RANK = 8, 16
MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def shape(module: str, width: int, inner: int) -> tuple[int, int]:
    """(out, in) of a module."""
    return {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}.get(
        module.split(".")[1], (width, width)
    )


def sparse_base(folder: Path, layers: int, width: int, inner: int, vocabulary: int) -> None:
    """A Llama folder whose weights are zeros that no disk holds."""
    folder.mkdir()
    shapes = {
        "model.embed_tokens.weight": (vocabulary, width),
        "lm_head.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{module}.weight": shape(module, width, inner) for module in MODULES}
        shapes |= {f"{prefix}{norm}.weight": (width,) for norm in ("input_layernorm", "post_attention_layernorm")}
    header, end = {}, 0
    for name, size in shapes.items():
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [end, end := end + 2 * torch.Size(size).numel()]}
    encoded = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + end)
        file.seek(8 + len(encoded) + header["lm_head.weight"]["data_offsets"][0])
        file.write(b"\x80\x3f")  # a one, so that the output is not taken for the embedding's second copy
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": vocabulary,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def adapter(folder: Path, layers: int, width: int, inner: int, seed: int) -> None:
    """A random adapter of every linear module, in bfloat16."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for module in MODULES:
            out, into = shape(module, width, inner)
            key = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, into, generator=generator).mul_(0.01).bfloat16()
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, RANK, generator=generator).mul_(0.01).bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": [m.split(".")[1] for m in MODULES]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    layers, width, inner, vocabulary = SHAPES["small" if arguments.small else "7B"]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        there = Path(scratch)
        sparse_base(there / "base", layers, width, inner, vocabulary)
        for k in range(TASKS):
            adapter(there / f"task{k}", layers, width, inner, k)
        experts = [word for k in range(TASKS) for word in ("--expert", f"t{k}={there / f'task{k}'}")]
        models = ["--base", there / "base", *experts, "--quiet"]
        commands = {
            "check": ["check", *models[:-1]],
            "merge, task arithmetic, to one adapter": ["merge", *models, "--lora", "-o", there / "merged"],
            "fit, soup: exact, rank 128": ["fit", *models, "--method", "soup", "-o", there / "soup"],
            "fit, Pareto Merging, rank 16, all matrices": [
                "fit", *models, "--option", "rank=16", "--option", "targets=all", "-o", there / "pm",
            ],
            "pick an adapter from the soup, rank 128": [
                "pick", there / "soup", "-p", "priority:t0", "--lora", "--quiet", "-o", there / "picked",
            ],
            "pick an adapter from the soup, rank 16": [
                "pick", there / "soup", "-p", "priority:t0", "--lora", "--rank", "16", "--quiet", "-o", there / "small",
            ],
            "pick an adapter of Pareto Merging": [
               "pick", there / "pm", "-p", "priority:t0", "--lora", "--quiet", "-o", there / "thin"],
        }  # fmt: skip
        for what, words in commands.items():
            run = measure([OURS, *words])
            written = Path(words[-1])
            size = sum(f.stat().st_size for f in written.glob("*.safetensors")) if what != "check" else 0
            rows.append({"command": what, "cpu_s": round(run.cpu_s, 1), "wall_s": round(run.wall_s, 1),
                         "anonymous_MiB": round(run.anonymous_mib), "written_MiB": round(size / MIB)})  # fmt: skip
            print(
                f"{what:45} {run.cpu_s:7.1f} CPU s {run.wall_s:7.1f} s {run.anonymous_mib:6.0f} MiB, writes {size / MIB:5.0f}",
                flush=True,
            )
    worst = max(row["anonymous_MiB"] for row in rows)
    print(f"peak {worst} MiB, limit {LIMIT}: {'met' if worst <= LIMIT else 'NOT met'}")
    if not arguments.small:
        (HERE / "results" / "lora_experts.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
