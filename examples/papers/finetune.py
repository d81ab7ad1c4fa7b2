"""Fine-tune the base of a recipe on one of its tasks: an expert, for papers that have not published theirs.

    python finetune.py resnet18.yaml cifar10

The folder that the recipe names for the expert is written; the head is new, and as large as the task has classes.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import AutoModelForImageClassification

from paretomerge.data import load_task, read_splits
from paretomerge.models import device_of
from paretomerge.recipes import combined
from paretomerge.weights import local


def main(
    recipe: Path, task: str, epochs: int = 5, batch_size: int = 128, lr: Annotated[float, typer.Option(help="of AdamW")] = 1e-4
) -> None:
    """Train, and write the expert where the recipe looks for it."""
    plan = combined(recipe)
    spec = plan.data[task].model_copy(update={"fit_inputs": None})
    split = read_splits(spec.path, spec.subset)[spec.fit or "train"]
    names = next(iter(split.names.values()))
    torch.manual_seed(0)
    folder, device = local(plan.base), device_of("auto")
    model = AutoModelForImageClassification.from_pretrained(
        folder, id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    ).to(device)  # fmt: skip
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    inputs = load_task(task, spec, companions=folder, config=config, keep_labels=True).fit
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for epoch in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(batch_size):
            pixels = {name: each.to(device) for name, each in inputs.batch(chosen.tolist()).items()}
            loss = model(**pixels, labels=inputs.labels[chosen].to(device)).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.4f}")
    model.save_pretrained(plan.experts[task])


if __name__ == "__main__":
    typer.run(main)
