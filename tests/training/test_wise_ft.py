"""Interpolation of weights before and after training."""

import torch
from peft.tuners.lora import LoraLayer

from conftest import tiny_lm
from imprag.model import ImpRAGConfig
from imprag.training.lora import add_adapters, begin_with
from imprag.training.lora_settings import LoraGroup, LoraSettings
from imprag.training.wise_ft import interpolate, trained_weights


def _trained_norm(name: str, parameter: torch.Tensor) -> bool:
    return "norm" in name and parameter.requires_grad


def test_interpolated_adapters_equal_interpolated_products_up_to_second_order() -> None:
    lm = tiny_lm()
    settings = LoraSettings(bottom=LoraGroup(rank=4, alpha=8), targets=("q_proj",), norms=True)
    add_adapters(lm, settings, ImpRAGConfig(base_model="tiny", b=2, t=4))
    start = tiny_lm()
    for layer, other in zip(start.model.layers[:3], tiny_lm(seed=5).model.layers, strict=False):
        layer.self_attn.q_proj = other.self_attn.q_proj
    begin_with(lm, start)

    def state() -> dict[str, torch.Tensor]:
        norms = {name: p.clone() for name, p in lm.named_parameters() if _trained_norm(name, p)}
        adapted = {
            name: module.get_delta_weight("default")
            for name, module in lm.named_modules()
            if isinstance(module, LoraLayer)
        }
        return {name: value.detach() for name, value in {**norms, **adapted}.items()}

    before, initial = state(), trained_weights(lm)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.requires_grad:
                parameter.add_(1e-3 * torch.randn_like(parameter))
    after = state()
    interpolate(lm, initial, 0.6)
    for name, value in state().items():
        wanted = 0.4 * before[name] + 0.6 * after[name]
        assert (value - wanted).norm() < 0.01 * (after[name] - before[name]).norm()


def test_frozen_parameters_are_neither_copied_nor_interpolated() -> None:
    lm = tiny_lm()
    lm.get_input_embeddings().requires_grad_(False)
    initial = trained_weights(lm)
    assert not any("embed_tokens" in name for name in initial)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(1.0)
    embeddings = lm.get_input_embeddings().weight.clone()
    interpolate(lm, initial, 0.0)
    assert torch.equal(lm.get_input_embeddings().weight, embeddings)
    assert all(torch.equal(lm.get_parameter(name), value) for name, value in initial.items())
