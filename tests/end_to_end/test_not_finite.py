"""Nothing writes, or measures, a model with NaN or infinity in it."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from paretomerge import api, load_experts, load_front
from paretomerge.app import export
from paretomerge.errors import UserError
from paretomerge.evaluation import FrontModels
from paretomerge.weights import check_finite

LARGE = "model.layers.0.self_attn.q_proj.weight"
COPIED = "model.norm.weight"


@pytest.fixture
def wide(tmp_path):
    """A base and experts in bf16 with entries that float16 has no room for, in a merged and in a copied tensor."""
    folders = [tmp_path / name for name in ("base", "a", "b")]
    for seed, folder in enumerate(folders):
        net = tiny.perturb(tiny.model("llama"), seed) if seed else tiny.model("llama")
        tensors = dict(net.state_dict())
        tensors[LARGE] = tensors[LARGE] + 1e5
        net.load_state_dict(tensors)
        tiny.save(net.to(torch.bfloat16), folder)
    return folders


def words(folders):
    return ["--base", folders[0], "--expert", f"a={folders[1]}", "--expert", f"b={folders[2]}"]


def test_weights_that_do_not_fit_are_refused_everywhere(cli, wide):
    narrow = ["--dtype", "float16"]
    said = f"{LARGE}: overflows float16: store it wider (--dtype float32)"
    copied = [*words(wide), "--exclude", "*q_proj*"]  # also what is not merged
    assert cli.refuses("merge", *copied, *narrow, "-o", "m", "--quiet") == said
    assert cli.refuses("fit", *copied, *narrow, "-o", "m", "--quiet") == said
    for name, method in (("front", ["--option", "rank=2"]), ("soup", ["--method", "soup"])):
        cli("fit", *words(wide), *method, "-o", name)
        for preference in ("equal", "a=0.9,b=0.1"):
            assert cli.refuses("pick", name, "-p", preference, *narrow, "-o", "m") == said
        cli("pick", name, "-p", "only:a", "--dtype", "float32", "-o", f"{name}-wide")
        with pytest.raises(UserError, match="overflows float16"):
            export(load_front(name), [0.5, 0.5], "page", dtype=torch.float16)
        assert not Path(name, "exports", "page").exists()
    with pytest.raises(UserError, match="overflows"):
        api.fit(load_experts(wide[0], {"a": wide[1]}).stored_as(torch.float16), "soup").save(cli.here / "m")


@pytest.mark.parametrize("method", [["--option", "rank=2"], ["--method", "soup"]])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_set_with_nan_is_refused(cli, zoo, method, value):
    cli("fit", *zoo.flags("llama"), *method, "-o", "front")
    file = Path("front/pareto_set.safetensors")
    tensors = load_file(file)
    name = sorted(name for name in tensors if "q_proj" in name and not name.endswith(".G"))[0]
    tensors[name].view(-1)[0] = value
    save_file(tensors, file)
    assert "NaN or infinite" in cli.refuses("pick", "front", "-p", "only:a", "-o", "m")
    if "soup" not in method:
        assert "NaN or infinite" in cli.refuses("pick", "front", "-p", "only:a", "--lora", "-o", "m")
    assert "NaN or infinity" in cli.refuses("report", "front", "-o", "report.html")
    front = load_front("front")
    with pytest.raises(UserError, match="NaN or infinite"):
        front.save("again")
    with pytest.raises(UserError, match="NaN or infinite"):
        front.model("only:a")
    live = FrontModels(front.pareto_set, front.tasks, front.config, front.heads).live(torch.device("cpu"))
    with pytest.raises(UserError, match="NaN or infinite"):
        live.move_([1.0, 0.0])


def test_a_front_whose_model_has_nan(cli, zoo):
    cli("fit", *zoo.flags("llama"), "--option", "rank=2", "-o", "front")
    file = Path("front/model.safetensors")
    save_file(load_file(file) | {COPIED: torch.full((16,), math.nan)}, file, metadata={"format": "pt"})
    for preference in ("equal", "only:a"):
        assert cli.refuses("pick", "front", "-p", preference, "-o", "m").startswith(f"{COPIED}: 16 of 16 entries")


def test_masks_of_minus_infinity_pass(cli, zoo, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(zoo("llama") / "base", folder)
    mask = torch.full((4, 4), -math.inf).triu(1)
    save_file(load_file(folder / "model.safetensors") | {"mask": mask}, folder / "model.safetensors", metadata={"format": "pt"})
    flags = zoo.flags("llama")
    cli("fit", "--base", folder, *flags[2:], "--missing", "base", "-o", "front")
    cli("pick", "front", "-p", "only:a", "-o", "model")
    assert torch.equal(load_file("model/model.safetensors")["mask"], mask)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_place_is_seen(dtype):
    for size in (1, 7, 1000):
        tensor = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
        check_finite("x", tensor)
        check_finite("x", torch.full((size,), torch.finfo(dtype).max, dtype=dtype))
        for value in (math.nan, math.inf):
            for place in {0, size // 2, size - 1}:
                spoiled = tensor.clone()
                spoiled[place] = value
                with pytest.raises(UserError, match=r"^x: "):
                    check_finite("x", spoiled)
    check_finite("x", torch.empty(0, dtype=dtype))
    check_finite("x", torch.ones(3, dtype=torch.float8_e4m3fn))
