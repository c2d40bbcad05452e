"""The mean of two readers, which keeps most of what each has learnt (dev/LOG.md, 2026-11-30).

Both are runs that train LoRA adapters of the same modules above the same layers 0..b, from one
start for instance. The means of their changes are truncated to the ranks of the second; a change's
largest singular values are kept. All other weights, norms for instance, are averaged as they are.

    python examples/default_model/mean.py runs/answers runs/mixed --out runs/mean
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from imprag.errors import ImpRAGError
from imprag.io.locking import new_folder
from imprag.model.adapter import PREFIX, WEIGHTS, Adapter
from imprag.training.run import MODEL


def mean(first: Adapter, second: Adapter, alpha: float) -> tuple[dict[str, Tensor], float]:
    """(1 - alpha) · first + alpha · second, in the form and ranks of the second.

    Returns:
        the tensors of an adapter in float32, and the largest share of a mean change's squared
        singular values that its rank has cut off.

    Raises:
        ImpRAGError: the adapters do not change the same weights.
    """
    if first.tensors.keys() != second.tensors.keys():
        raise ImpRAGError(f"{first.folder} and {second.folder} do not change the same weights")
    tensors = {
        name: torch.lerp(first.tensors[name].float(), tensor.float(), alpha).contiguous()
        for name, tensor in second.tensors.items()
    }
    lost = 0.0
    for module in second.modules:
        names = [f"{PREFIX}{module}.lora_{part}.weight" for part in "AB"]
        if all(torch.equal(first.tensors[name], second.tensors[name]) for name in names):
            continue
        change = (1 - alpha) * _change(first, *names) + alpha * _change(second, *names)
        left, values, right = torch.linalg.svd(change / second.scaling(module))
        rank = len(second.tensors[names[0]])
        lost = max(lost, float(values[rank:].square().sum() / values.square().sum()))
        root = values[:rank].sqrt()
        tensors[names[0]] = (root[:, None] * right[:rank]).float().contiguous()
        tensors[names[1]] = (left[:, :rank] * root).float().contiguous()
    return tensors, lost


def _change(adapter: Adapter, down: str, up: str) -> Tensor:
    """What an adapter adds to a weight, in float64."""
    module = down.removeprefix(PREFIX).removesuffix(".lora_A.weight")
    product = adapter.tensors[up].double() @ adapter.tensors[down].double()
    return product * adapter.scaling(module)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the mean that the command line asks for."""
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="a run folder of a recipe with lora")
    parser.add_argument("second", type=Path, help="another, with the same modules")
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the second (0.5)")
    parser.add_argument("--out", type=Path, required=True, help="the run folder to make")
    asked = parser.parse_args(arguments)
    try:
        first, second = (Adapter(run / MODEL) for run in (asked.first, asked.second))
        tensors, lost = mean(first, second, asked.alpha)
        with new_folder(asked.out):
            without = shutil.ignore_patterns("checkpoint-*")
            shutil.copytree(asked.second, asked.out, ignore=without, dirs_exist_ok=True)
            save_file(tensors, asked.out / MODEL / WEIGHTS)
    except ImpRAGError as error:
        parser.error(str(error))
    print(f"model: {asked.out / MODEL}\nlargest share of a change that was cut off: {lost:.2g}")


if __name__ == "__main__":
    main()
