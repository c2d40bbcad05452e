"""Linear layers that share products with few tokens between threads, against PyTorch's own."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import tiny_lm
from imprag.model import ImpRAGConfig, ImpRAGModel, linear
from imprag.model.linear import SharedLinear, plain_products, share_products, sharing_pays


@pytest.fixture(autouse=True)
def pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose library reads the weights with one thread."""
    monkeypatch.setattr(linear, "sharing_pays", lambda threads: True)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def shared(inputs: int, outputs: int, bias: bool = True) -> SharedLinear:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias)
    share_products(layer)
    assert type(layer) is SharedLinear
    return layer


@pytest.mark.parametrize(
    "shape", [(), (1,), (1, 1), (2, 1), (3, 1), (2, 6), (1, 32), (3, 11), (0,)]
)
@pytest.mark.parametrize("outputs", [6, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_the_products_are_those_of_a_plain_layer(
    threads: int, shape: tuple[int, ...], outputs: int, bias: bool
) -> None:
    layer = shared(5, outputs, bias)
    x = torch.randn(*shape, 5)
    with torch.no_grad():
        made = layer(x)
    expected = F.linear(x, layer.weight, layer.bias)
    assert made.shape == expected.shape
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=1e-6)


def test_inputs_may_lie_in_any_order(threads: int) -> None:
    layer = shared(5, 6)
    x = torch.randn(5, 4, 2).permute(2, 1, 0)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


def test_gradients_are_those_of_a_plain_layer() -> None:
    layer = shared(5, 6)
    layer(torch.ones(2, 5)).sum().backward()
    torch.testing.assert_close(layer.weight.grad, torch.full((6, 5), 2.0))


def test_only_plain_float32_layers_on_a_cpu_are_changed() -> None:
    class Own(nn.Linear):
        pass

    layers = [Own(2, 2), nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2, device="meta")]
    kinds = [type(layer) for layer in layers]
    share_products(nn.ModuleList(layers))
    assert [type(layer) for layer in layers] == kinds


def test_layers_stay_plain_where_sharing_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "sharing_pays", lambda threads: False)
    layer = nn.Linear(5, 6)
    share_products(layer)
    assert type(layer) is nn.Linear


def test_what_pays_is_measured_once_and_draws_no_random_numbers() -> None:
    assert sharing_pays(1) is False
    state = torch.random.get_rng_state()
    assert sharing_pays(2) is sharing_pays(2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_computes_with_plain_layers_for_a_while() -> None:
    model = ImpRAGModel(tiny_lm("llama"), ImpRAGConfig(base_model="llama", b=1, t=3))
    kinds = {type(module) for module in model.lm.modules() if isinstance(module, nn.Linear)}
    assert kinds == {SharedLinear}
    with plain_products(model.lm):
        inside = {type(module) for module in model.lm.modules() if isinstance(module, nn.Linear)}
    assert inside == {nn.Linear}
    after = {type(module) for module in model.lm.modules() if isinstance(module, nn.Linear)}
    assert after == kinds
