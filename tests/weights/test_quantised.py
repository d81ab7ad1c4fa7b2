"""Quantised checkpoints are refused by one line, whatever tells that they are quantised."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from paretomerge.errors import UserError
from paretomerge.experts import load_experts
from paretomerge.weights import open_checkpoint

WEIGHT = "model.layers.0.self_attn.q_proj.weight"
CONFIGS = {
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "awq": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "bitsandbytes 4": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    "bitsandbytes 8": {"quantization_config": {"load_in_8bit": True}},
    "fp8": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "mxfp4": {"quantization_config": {"quant_method": "mxfp4"}},
    "compressed-tensors": {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
    "its older name": {"compression_config": {"format": "int-quantized"}},
    "in a part": {"text_config": {"quantization_config": {"quant_method": "awq"}}},
    "something new": {"quantization_config": {"quant_method": "never-heard-of"}},
}
TENSORS = {
    "GPTQ": {WEIGHT.replace("weight", "qweight"): torch.int32},
    "bitsandbytes 4": {WEIGHT: torch.uint8, f"{WEIGHT}.absmax": torch.float32},
    "bitsandbytes 4, nested": {f"{WEIGHT}.quant_state.bitsandbytes__nf4": torch.uint8},
    "bitsandbytes 8": {WEIGHT: torch.int8, WEIGHT.replace("weight", "SCB"): torch.float32},
    "fp8": {WEIGHT: torch.float8_e4m3fn, f"{WEIGHT}_scale_inv": torch.float32},
    "compressed-tensors": {WEIGHT.replace("weight", "weight_packed"): torch.int32},
    "MXFP4": {"model.layers.0.mlp.experts.gate_up_proj_blocks": torch.uint8},
    "bare integers": {WEIGHT: torch.int8},
    "quanto": {f"{WEIGHT}._data": torch.int8},
}


def refusal(call):
    with pytest.raises(UserError, match="is quantised") as error:
        call()
    assert "\n" not in str(error.value) and "full-precision" in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("case", CONFIGS)
def test_by_the_configuration(tmp_path, case):
    folder = tiny.save(tiny.model("llama"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | CONFIGS[case]))
    assert str(folder / "config.json") in refusal(lambda: open_checkpoint(folder))


@pytest.mark.parametrize("case", TENSORS)
@pytest.mark.parametrize("config", [True, False])
def test_by_the_tensors(tmp_path, case, config):
    folder = tiny.save(tiny.model("llama"), tmp_path / "m")
    file = folder / "model.safetensors"
    tensors = load_file(file) | {name: torch.zeros(8, 4).to(dtype) for name, dtype in TENSORS[case].items()}
    save_file(tensors, file)
    assert str(file) in refusal(lambda: open_checkpoint(folder if config else file))


def test_dtypes_of_four_bits(tmp_path):
    file = tmp_path / "x.safetensors"
    header = json.dumps({"a.weight": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}).encode()
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    refusal(lambda: open_checkpoint(file))


def test_the_way_out_is_named(tmp_path):
    folder = tiny.save(tiny.model("llama"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | CONFIGS["bitsandbytes 4"]))
    assert f"from_pretrained({str(folder)!r}).dequantize().save_pretrained(NEW)" in refusal(lambda: open_checkpoint(folder))


def test_an_adapter_on_its_quantised_base(tmp_path):
    peft = pytest.importorskip("peft")
    base = tiny.save(tiny.model("llama"), tmp_path / "base")
    net = peft.get_peft_model(tiny.model("llama"), peft.LoraConfig(target_modules=["q_proj"], r=2))
    net.save_pretrained(tmp_path / "lora")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | CONFIGS["bitsandbytes 4"]))
    assert "QLoRA" in refusal(lambda: load_experts(base, {"a": tmp_path / "lora"}))


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_what_is_not_quantised_opens(tmp_path, kind):
    folder = tiny.save(tiny.model(kind), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    assert len(open_checkpoint(folder)) > 0
