"""LoRA adapters on the three layer groups."""

import logging
from collections.abc import Iterator

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from imprag.errors import ImpRAGError
from imprag.model.config import ImpRAGConfig
from imprag.model.peft_adapters import add_adapter
from imprag.training.architecture import check_adapted, is_norm, last_group
from imprag.training.lora_settings import LoraGroup, LoraSettings


def add_adapters(
    lm: PreTrainedModel,
    settings: LoraSettings,
    config: ImpRAGConfig,
    start: PreTrainedModel | None = None,
) -> None:
    """Freeze the model and add an adapter to each layer group that the settings name.

    All groups share one peft adapter with ranks per module, so that it is saved as one. The adapter
    of a group that is not trained gets the ranks of the differences that it has to keep.

    Args:
        lm: the base model.
        settings: the groups and their ranks.
        config: says which layers form the groups.
        start: the model that training starts from, see :func:`begin_with`.

    Raises:
        ImpRAGError: a target names no projection of a group's layers, or the start has weights of
            other names or shapes.
    """
    layers = lm.base_model.layers
    numbers = config.layer_groups(len(layers))
    check_adapted(
        {name: [layers[n] for n in own] for name, own in numbers.items()}, settings, config
    )
    wanted = {} if start is None else start.state_dict()
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    norms: list[str] = []
    for adapter, starts in _groups(lm, settings, config):
        modules = [(name, m) for name, m in lm.named_modules() if name.startswith(starts)]
        linear = [name for name, module in modules if isinstance(module, nn.Linear)]
        if settings.norms:
            norms += [name for name, module in modules if is_norm(module)]
        for name in (n for target in settings.targets for n in linear if n.endswith(f".{target}")):
            ranks[name], alphas[name] = adapter.rank, adapter.alpha
            if not adapter.trained:
                weight = lm.get_submodule(name).weight
                full = f"{name}.weight"
                ranks[name] = _rank(_weight(wanted, full, weight).to(weight) - weight, weight)
                alphas[name] = ranks[name]
    add_adapter(
        lm,
        LoraConfig(
            target_modules=list(ranks),
            rank_pattern=ranks,
            alpha_pattern=alphas,
            modules_to_save=norms or None,
        ),
    )


def hold_untrained(lm: PreTrainedModel, settings: LoraSettings, config: ImpRAGConfig) -> None:
    """Freeze the adapters and norms of groups that are not trained."""
    for adapter, starts in _groups(lm, settings, config):
        if not adapter.trained:
            for name, parameter in lm.named_parameters():
                if name.startswith(starts):
                    parameter.requires_grad_(False)


def _groups(
    lm: PreTrainedModel, settings: LoraSettings, config: ImpRAGConfig
) -> Iterator[tuple[LoraGroup, tuple[str, ...]]]:
    """Groups with an adapter: the adapter, and the prefixes of their modules' names.

    The norm after the last layer belongs to the last group that has layers.
    """
    model = lm.base_model_prefix
    groups = config.layer_groups(len(lm.base_model.layers))
    last = last_group(groups)
    ends = [  # peft keeps a trained norm beside the original
        f"{model}.{name}"
        for name, module in lm.base_model.named_children()
        if is_norm(getattr(module, "original_module", module))
    ]
    for name, adapter in settings.groups.items():
        starts = [f"{model}.layers.{layer}." for layer in groups[name]]
        yield adapter, tuple(starts + ends if name == last else starts)


@torch.no_grad()
def begin_with(lm: PreTrainedModel, start: PreTrainedModel) -> None:
    """Initialise a model's trained weights from another model of the same architecture.

    An adapted weight itself stays as it is; its adapter becomes the best approximation of the
    difference at the adapter's rank (its largest singular values).

    Raises:
        ImpRAGError: the models have weights of different names or shapes, or a weight that is
            neither trained nor adapted differs.
    """
    wanted = start.state_dict()
    adapted = {name: module for name, module in lm.named_modules() if isinstance(module, LoraLayer)}
    for name, module in adapted.items():
        _approximate(module, _weight(wanted, f"{name}.weight", module.get_base_layer().weight))
    own = {
        name.replace(".modules_to_save.default", "").replace(".base_layer.", "."): weight
        for name, weight in lm.state_dict(keep_vars=True).items()
        if ".lora_" not in name and ".original_module." not in name
    }
    if unknown := wanted.keys() - own.keys():
        raise ImpRAGError(
            f"training cannot start from this model: model.base has no {min(unknown)}; model.start "
            "must be trained from model.base"
        )
    bases = {id(module.get_base_layer().weight) for module in adapted.values()}
    copied = set()
    for name, parameter in own.items():
        weight = _weight(wanted, name, parameter)
        if id(parameter) in bases:
            continue
        same = torch.equal(parameter, weight.to(parameter))
        if id(parameter) in copied and not same:
            raise ImpRAGError(
                f"training cannot start from this model: model.base ties {name} to another weight, "
                "and model.start does not"
            )
        if parameter.requires_grad:
            parameter.copy_(weight)
            copied.add(id(parameter))
        elif not same:
            _refuse_loss(name)


def _refuse_loss(name: str) -> None:
    """Report a weight of the start that would be lost.

    Only projections and norms of the layers, and the last norm, can be adapted.
    """
    problem = f"model.start has another {name} than model.base, "
    adaptable = "norm" in name or (".layers." in name and not name.endswith(".bias"))
    if not adaptable:
        logging.getLogger(__name__).warning(
            "%swhich adapters cannot hold: training begins with the base's", problem
        )
        return
    raise ImpRAGError(
        f"{problem}and this recipe neither trains nor adapts it, so it would be lost. Name its "
        "layers in lora (bottom, reading, top; `trained: false` keeps them as they are), set "
        "`lora.norms: true` for norms, extend lora.targets, or train without lora"
    )


def halve_frozen(lm: PreTrainedModel) -> None:
    """Convert the layers' frozen projections to bfloat16, for training under autocast.

    Autocast caches its copies of trained weights only; frozen weights would be cast in every call.
    """
    for module in lm.base_model.layers.modules():
        if isinstance(module, nn.Linear) and not any(_trained(module)):
            module.to(torch.bfloat16)


def _trained(module: nn.Module) -> Iterator[bool]:
    return (parameter.requires_grad for parameter in module.parameters())


def _weight(weights: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    found = weights.get(name)
    if found is None or found.shape != like.shape:
        raise ImpRAGError(
            f"training cannot start from this model: {name} should have the shape "
            f"{tuple(like.shape)}, "
            + ("but is missing" if found is None else f"not {tuple(found.shape)}")
        )
    return found


def _rank(difference: Tensor, weight: Tensor) -> int:
    """The rank of a difference from a weight, without what rounding adds; at least 1.

    The largest singular value of uniform rounding errors is near their standard deviation, under a
    third of eps · |weight|, times √rows + √columns (Marchenko–Pastur).
    """
    rows, columns = difference.shape
    smaller = (difference if rows <= columns else difference.T).double()
    values = torch.linalg.eigvalsh(smaller @ smaller.T).clamp_min(0).sqrt()
    size = weight.double().square().mean().sqrt()
    edge = torch.finfo(weight.dtype).eps * size * sum(side**0.5 for side in weight.shape)
    return max(1, int((values > edge).sum()))


def _approximate(module: LoraLayer, weight: Tensor) -> None:
    """Set an adapter to the best approximation, at its rank, of weight − base."""
    (name,) = module.active_adapters
    base = module.get_base_layer().weight
    difference = (weight.to(base.device, torch.float64) - base.double()) / module.scaling[name]
    left, right = _factors(difference, module.r[name])
    rank = len(right)
    module.lora_A[name].weight.zero_()[:rank] = right
    module.lora_B[name].weight.zero_()[:, :rank] = left


def _factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors (rows, rank) and (rank, columns) of the best approximation of the matrix.

    Both factors get the square root of the singular values. They come from the eigenvectors of the
    smaller Gram matrix, which a GPU computes many times faster than a singular value decomposition.
    """
    if matrix.shape[0] > matrix.shape[1]:
        left, right = _factors(matrix.T, rank)
        return right.T, left.T
    vectors = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -rank:]
    right = vectors.T @ matrix
    roots = right.norm(dim=1).sqrt().clamp_min(torch.finfo(right.dtype).tiny)
    return vectors * roots, right / roots[:, None]
