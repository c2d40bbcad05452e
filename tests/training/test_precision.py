"""Mixed precision without redundant casts."""

import pytest
import torch
from torch.testing import assert_close

from conftest import FAMILIES, tiny_lm
from imprag.training import precision
from imprag.training.precision import cast_block_inputs, note_slow_bfloat16

IDS = torch.arange(1, 41).view(2, 20)


def loss_and_gradients(family: str, *, cast: bool, autocast: bool) -> list[torch.Tensor]:
    lm = tiny_lm(family)
    if cast:
        cast_block_inputs(lm)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = lm(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in lm.parameters() if p.grad is not None)]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_casting_block_inputs_once_is_as_exact_as_autocast(family: str) -> None:
    exact = loss_and_gradients(family, cast=False, autocast=False)
    plain = loss_and_gradients(family, cast=False, autocast=True)
    cast = loss_and_gradients(family, cast=True, autocast=True)
    assert_close(cast[0], plain[0], rtol=0, atol=0)

    def error(gradients: list[torch.Tensor]) -> torch.Tensor:
        pairs = zip(gradients[1:], exact[1:], strict=True)
        return torch.stack([(one - other).norm() for one, other in pairs]).norm()

    assert error(cast) < 1.2 * error(plain)


def test_block_inputs_are_not_cast_without_autocast() -> None:
    plain = loss_and_gradients("llama", cast=False, autocast=False)
    cast = loss_and_gradients("llama", cast=True, autocast=False)
    assert_close(cast, plain, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("faster", "chosen", "noted"),
    [
        (torch.float32, "bf16", True),
        (torch.bfloat16, "bf16", False),
        (torch.float32, "fp32", False),
    ],
)
def test_bfloat16_is_advised_against_where_it_is_slower(
    faster: torch.dtype,
    chosen: str,
    noted: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(precision, "resolve_dtype", lambda *_: faster)
    note_slow_bfloat16(chosen)
    assert ("--set trainer.bf16=false" in capsys.readouterr().err) == noted
