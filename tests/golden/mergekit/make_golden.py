"""Makes what lies beside this file: tiny models, mergekit configurations, and what mergekit makes of them.

    make peers
    .venv-peers/bin/python tests/golden/mergekit/make_golden.py           # write everything anew
    .venv-peers/bin/python tests/golden/mergekit/make_golden.py --check   # or: same bytes again?

Each family is a folder: `base`, `expert_a`, … (Hugging Face models, fp32), `CASE.yml` (its model paths are relative to
that folder) and `outputs/CASE.safetensors`. `cases.json` lists them; cases whose outputs are equal bit for bit share a file.
Only merges without chance are here: DARE and DELLA at density 1. Inputs are drawn so that no decision (which entries TIES
keeps, which sign it elects, which branch SLERP takes) hangs on rounding; `_assert_clear_cut` checks it.
"""

import argparse
import filecmp
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXPERTS = ("expert_a", "expert_b", "expert_c")

LLAMA = {
    # -- linear: weights are normalised unless told otherwise; no base is needed
    "linear": """
merge_method: linear
models:
  - {model: expert_a, parameters: {weight: 1.0}}
  - {model: expert_b, parameters: {weight: 2.0}}
  - {model: expert_c, parameters: {weight: 0.5}}
""",
    "linear_not_normalized": """
merge_method: linear
models:
  - {model: expert_a, parameters: {weight: 0.3}}
  - {model: expert_b, parameters: {weight: 0.45}}
  - {model: expert_c, parameters: {weight: 0.1}}
parameters:
  normalize: false
""",
    "linear_dtype_bfloat16": """
merge_method: linear
dtype: bfloat16
models:
  - {model: expert_a, parameters: {weight: 1.0}}
  - {model: expert_b, parameters: {weight: 2.0}}
""",
    # -- slerp: base at t = 0, the other at t = 1; each tensor is one vector
    "slerp": """
merge_method: slerp
base_model: base
models:
  - model: expert_a
  - model: base
parameters:
  t: 0.3
""",
    "slerp_experts": """
merge_method: slerp
base_model: expert_a
models:
  - model: expert_a
  - model: expert_b
parameters:
  t: 0.7
""",
    "slerp_gradient": """
merge_method: slerp
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 3]}
      - {model: expert_b, layer_range: [0, 3]}
parameters:
  t:
    - {filter: self_attn, value: [0.1, 0.5, 0.3, 0.7]}
    - {filter: mlp, value: [1, 0.2]}
    - {value: [0.25, 0.75]}
dtype: float32
""",
    "slerp_two_slices": """
merge_method: slerp
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 1]}
      - {model: expert_c, layer_range: [0, 1]}
    parameters: {t: 0.2}
  - sources:
      - {model: base, layer_range: [1, 3]}
      - {model: expert_c, layer_range: [1, 3]}
parameters:
  t: [0.4, 0.6]
""",
    # -- task arithmetic
    "task_arithmetic": """
merge_method: task_arithmetic
base_model: base
models:
  - {model: expert_a, parameters: {weight: 0.5}}
  - {model: expert_b, parameters: {weight: 0.3}}
  - {model: expert_c, parameters: {weight: 0.7}}
""",
    "task_arithmetic_normalize_lambda": """
merge_method: task_arithmetic
base_model: base
models:
  - model: base
  - {model: expert_a, parameters: {weight: 0.5}}
  - {model: expert_b, parameters: {weight: 0.3}}
  - {model: expert_c, parameters: {weight: 0.7}}
parameters:
  normalize: true
  lambda: 0.6
""",
    "task_arithmetic_precedence": """
merge_method: task_arithmetic
base_model: base
models:
  - {model: expert_a, parameters: {weight: 0.5}}
  - model: expert_b
    parameters:
      weight:
        - {filter: q_proj, value: 0.9}
        - {filter: self_attn, value: 0.1}
  - {model: expert_c, parameters: {weight: [0.0, 0.4]}}
parameters:
  weight:
    - {filter: mlp, value: 0.25}
    - {value: 0.75}
""",
    "task_arithmetic_out_bfloat16": """
merge_method: task_arithmetic
base_model: base
dtype: float32
out_dtype: bfloat16
models:
  - {model: expert_a, parameters: {weight: 0.5}}
  - {model: expert_b, parameters: {weight: 0.3}}
""",
    # -- TIES: trimmed tensor by tensor; divided, entry by entry, by the weights that agree
    "ties": """
merge_method: ties
base_model: base
models:
  - {model: expert_a, parameters: {weight: 1.0}}
  - {model: expert_b, parameters: {weight: 0.6}}
  - {model: expert_c, parameters: {weight: 0.3}}
parameters:
  density: 0.5
  int8_mask: true
""",
    "ties_not_normalized": """
merge_method: ties
base_model: base
models:
  - {model: expert_a, parameters: {weight: 1.0}}
  - {model: expert_b, parameters: {weight: 0.6}}
  - {model: expert_c, parameters: {weight: 0.3}}
parameters:
  density: 0.5
  normalize: false
""",
    "ties_lambda": """
merge_method: ties
base_model: base
models:
  - {model: expert_a, parameters: {weight: 1.0}}
  - {model: expert_b, parameters: {weight: 0.6}}
  - {model: expert_c, parameters: {weight: 0.3}}
parameters:
  density: 0.5
  lambda: 0.7
""",
    "ties_densities": """
merge_method: ties
base_model: base
models:
  - {model: expert_a, parameters: {weight: 1.0, density: 0.23}}
  - {model: expert_b, parameters: {weight: 0.6, density: [0.9, 0.5]}}
  - {model: expert_c, parameters: {weight: -0.4}}
parameters:
  density: 0.61
  normalize: false
""",
    "ties_rescale": """
merge_method: ties
base_model: base
models:
  - {model: expert_a, parameters: {weight: 1.0, density: 0.3}}
  - {model: expert_b, parameters: {weight: 0.6, density: 0.5}}
parameters:
  rescale: true
""",
    "ties_density_1": """
merge_method: ties
base_model: base
models:
  - {model: expert_a, parameters: {weight: 0.5}}
  - {model: expert_b, parameters: {weight: 0.3}}
  - {model: expert_c, parameters: {weight: 0.7}}
""",
    "ties_density_1_not_normalized": """
merge_method: ties
base_model: base
models:
  - {model: expert_a, parameters: {weight: 0.5}}
  - {model: expert_b, parameters: {weight: 0.3}}
  - {model: expert_c, parameters: {weight: 0.7}}
parameters:
  normalize: false
""",
    # -- DARE and DELLA at density 1, where nothing is dropped: task arithmetic, or the sign election of TIES alone
    "dare_linear_density_1": """
merge_method: dare_linear
base_model: base
models:
  - {model: expert_a, parameters: {weight: 0.5, density: 1.0}}
  - {model: expert_b, parameters: {weight: 0.3, density: 1.0}}
  - {model: expert_c, parameters: {weight: 0.7, density: 1.0}}
""",
    "dare_ties_density_1": """
merge_method: dare_ties
base_model: base
models:
  - {model: expert_a, parameters: {weight: 0.5}}
  - {model: expert_b, parameters: {weight: 0.3}}
  - {model: expert_c, parameters: {weight: 0.7}}
parameters:
  density: 1.0
""",
    "dare_ties_density_1_normalized": """
merge_method: dare_ties
base_model: base
models:
  - {model: expert_a, parameters: {weight: 0.5}}
  - {model: expert_b, parameters: {weight: 0.3}}
  - {model: expert_c, parameters: {weight: 0.7}}
parameters:
  density: 1.0
  normalize: true
""",
    "della_density_1": """
merge_method: della
base_model: base
models:
  - {model: expert_a, parameters: {weight: 0.5, density: 1.0, epsilon: 0.0}}
  - {model: expert_b, parameters: {weight: 0.3, density: 1.0, epsilon: 0.0}}
  - {model: expert_c, parameters: {weight: 0.7, density: 1.0, epsilon: 0.0}}
""",
    "della_density_1_not_normalized": """
merge_method: della
base_model: base
models:
  - {model: expert_a, parameters: {weight: 0.5}}
  - {model: expert_b, parameters: {weight: 0.3}}
  - {model: expert_c, parameters: {weight: 0.7}}
parameters:
  density: 1.0
  epsilon: 0.1
  normalize: false
""",
    "della_linear_density_1": """
merge_method: della_linear
base_model: base
models:
  - {model: expert_a, parameters: {weight: 0.5}}
  - {model: expert_b, parameters: {weight: 0.3}}
  - {model: expert_c, parameters: {weight: 0.7}}
parameters:
  density: 1.0
""",
}

# Conv1D matrices lie transposed, embeddings are tied.
GPT2 = {
    "linear": LLAMA["linear"],
    "slerp": LLAMA["slerp"],
    "ties": LLAMA["ties"],
}

FAMILIES = {"llama": LLAMA, "gpt2": GPT2}
SEEDS = {"llama": 1, "gpt2": 1}  # the first for which every decision is clear-cut


def make_models(family: str, folder: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    def new_model():
        if family == "llama":
            return LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=64,
                    hidden_size=16,
                    intermediate_size=12,
                    num_hidden_layers=3,
                    num_attention_heads=4,
                    num_key_value_heads=1,
                    max_position_embeddings=32,
                )
            )
        return GPT2LMHeadModel(
            GPT2Config(
                bos_token_id=0, eos_token_id=0, vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_inner=12, n_positions=16
            )
        )

    def is_scale(name, p):
        return p.ndim == 1 and name.endswith("weight")

    seed = torch.Generator().manual_seed(SEEDS[family])
    # Deltas are 40 % of a matrix (SLERP turns) and 1 % of a norm's scale (SLERP takes its straight branch).
    base = new_model()
    with torch.no_grad():
        for name, p in base.named_parameters():
            noise = torch.randn(p.shape, generator=seed)
            p.copy_(1 + 0.1 * noise if is_scale(name, p) else 0.05 * noise)
    models = {"base": base}
    for expert in EXPERTS:
        models[expert] = new_model()
        models[expert].load_state_dict(base.state_dict())
        with torch.no_grad():
            for name, p in models[expert].named_parameters():
                p.add_((0.01 if is_scale(name, p) else 0.02) * torch.randn(p.shape, generator=seed))
    for name, model in models.items():
        model.save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)


def _assert_clear_cut(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    base = load_file(folder / "base/model.safetensors")
    experts = [load_file(folder / e / "model.safetensors") for e in EXPERTS]
    for name, b in base.items():
        deltas = torch.stack([e[name].double() - b.double() for e in experts])
        for d in deltas:
            magnitudes = d.abs().flatten().sort().values
            gap = (magnitudes[1:] - magnitudes[:-1]) / magnitudes[1:]
            for density in (0.23, 0.3, 0.5, 0.61, 0.7, 0.9):
                kept = int(density * d.numel())
                assert gap[d.numel() - kept - 1] > 3e-7, (folder.name, name, density)
        for weights in ((1.0, 0.6, 0.3), (1.0, 0.6, -0.4), (0.5, 0.3, 0.7)):
            votes = [w * d for w, d in zip(weights, deltas, strict=True)]
            for voters in (votes, votes[:2], votes[1:], votes[::2]):
                assert sum(voters).abs().min() > 1e-8, (folder.name, name, weights)
        cosines = [torch.cosine_similarity(b.flatten().double(), e[name].flatten().double(), 0) for e in experts]
        assert all(abs(c - 0.9995) > 1e-5 for c in cosines), (folder.name, name)


def merge(folder: Path, case: str) -> bytes:
    tool = Path(sys.executable).with_name("mergekit-yaml")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [tool, f"{case}.yml", out, "--no-copy-tokenizer", "--no-write-model-card", "--quiet"],
            cwd=folder,
            env=environment,
            check=True,
        )
        return Path(out, "model.safetensors").read_bytes()


def make(target: Path) -> None:
    listed = []
    for family, cases in FAMILIES.items():
        folder = target / family
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "outputs").mkdir(parents=True)
        make_models(family, folder)
        _assert_clear_cut(folder)
        seen: dict[bytes, str] = {}
        for path in folder.rglob("*.safetensors"):
            path.chmod(0o644)
        for case, config in cases.items():
            print(family, case, flush=True)
            (folder / f"{case}.yml").write_text(config.lstrip())
            weights = merge(folder, case)
            if weights not in seen:
                seen[weights] = f"{family}/outputs/{case}.safetensors"
                (target / seen[weights]).write_bytes(weights)
            listed.append({"case": case, "models": family, "config": f"{family}/{case}.yml", "output": seen[weights]})
    versions = {name: importlib.metadata.version(name) for name in ("mergekit", "torch", "transformers", "safetensors")}
    (target / "cases.json").write_text(json.dumps({"made_with": versions, "cases": listed}, indent=2) + "\n")


def check() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch))
        made = sorted(p.relative_to(scratch) for p in Path(scratch).rglob("*") if p.is_file())
        different = [str(p) for p in made if not filecmp.cmp(HERE / p, scratch / p, shallow=False)]
    if different:
        sys.exit("not the same bytes: " + ", ".join(different))
    print(f"{len(made)} files, the same bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="make everything elsewhere and compare")
    check() if parser.parse_args().check else make(HERE)
