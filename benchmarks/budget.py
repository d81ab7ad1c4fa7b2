"""The estimates of `paretomerge check` beside the peaks that were measured: GPT-2, dense experts and LoRA experts.

    .venv/bin/python benchmarks/budget.py --experts 3

Models and the measure are those of merge_speed.py (anonymous memory, every 20 ms). Fits on data do two steps on one text of
eight tokens a task, so that activations are small.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from merge_speed import CACHE, HERE, MIB, OURS, Failed, build, measure

FIT = """
import sys, torch
from paretomerge import api, load_experts
from paretomerge.data.inputs import TensorInputs
from paretomerge.data.tasks import Task
base, out, options, *folders = sys.argv[1:]
experts = load_experts(base, {f"t{k}": folder for k, folder in enumerate(folders)})
tasks = {t: Task(t, "language-modelling", TensorInputs({"input_ids": torch.arange(16).view(2, 8)}), None, "perplexity")
         for t in experts.tasks}
more = dict(word.split("=") for word in options.split(",") if word)
api.fit(experts, data=tasks, steps=2, batch_size=1, hashes=False, **more).save(out)
"""

ADAPT = """
import sys, torch, peft, transformers as hf
base, out, seed = sys.argv[1:]
torch.manual_seed(int(seed))
net = hf.AutoModelForCausalLM.from_pretrained(base)
config = peft.LoraConfig(r=16, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, init_lora_weights=False)
peft.get_peft_model(net, config).save_pretrained(out)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a tiny model; nothing is recorded")
    arguments = parser.parse_args()
    base, *dense = build("fp32", 8, arguments.small)[: arguments.experts + 1]
    rows = []
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        adapters = [Path(scratch, f"lora-{k}") for k in range(arguments.experts)]
        for k, adapter in enumerate(adapters):
            subprocess.run([sys.executable, "-c", ADAPT, base, adapter, str(k)], check=True, capture_output=True)
        for kind, folders in {"dense": dense, "lora": adapters}.items():
            models = ["--base", base, *(w for k, f in enumerate(folders) for w in ("--expert", f"t{k}={f}"))]
            said = subprocess.run([OURS, "check", *models, "--json"], check=True, capture_output=True, text=True).stdout
            for number, estimate in enumerate(json.loads(said)["estimates"]):
                what, out = estimate["command"], Path(scratch, f"front-of-{kind}-{number}")
                if what == "merge":
                    words = [OURS, "merge", *models, "-o", out, "--quiet"]
                elif what == "fit, closed form":
                    words = [OURS, "fit", *models, "-o", out, "--quiet"]
                else:
                    options = "store_task_vectors=bfloat16" if "bfloat16" in what else ""
                    words = [sys.executable, "-c", FIT, base, out, options, *folders]
                try:
                    peak = measure(words).anonymous_mib
                except Failed as failure:
                    sys.exit(str(failure))
                said_mib = estimate["memory"] / MIB
                rows.append({"experts": kind, "command": what, "estimate_mib": round(said_mib), "measured_mib": round(peak),
                             "ratio": round(said_mib / peak, 2)})  # fmt: skip
                print(rows[-1], flush=True)
    if not arguments.small:
        facts = {"model": "gpt2", "dtype": "fp32", "experts": arguments.experts, "rows": rows}
        (HERE / "results" / "budget.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
