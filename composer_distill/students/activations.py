"""How much a model's channels, neurons and heads are used, by their activations."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer_distill.students.families import Family, roles_of


class Importance(NamedTuple):
    """How much each matters, larger for more; in float64, in host memory.

    Attributes:
        hidden: Of each channel, the sum over all norms ``(H,)``.
        intermediate: For each layer, of each neuron ``(I,)``.
        heads: For each layer, of each head ``(A,)``.
    """

    hidden: Tensor
    intermediate: list[Tensor]
    heads: list[Tensor]


def measured(model: Any, family: Family, batches: Iterable[Mapping[str, Any]]) -> Importance:
    """Measure activations: their mean size over a sequence, the L2 norm of that over samples.

    Padding is left out, where a batch has an ``attention_mask``. The model runs in eval mode,
    without gradients, and comes back in its own mode.

    Args:
        model: A Hugging Face model.
        family: Where its modules are.
        batches: Its inputs.

    Raises:
        ValueError: If there are no batches, or one gives activations that are not finite.

    Reference:
        Muralidharan et al. 2024, arXiv 2407.14679, section 2.2.
    """
    squares: dict[str, Tensor] = {}
    mask: list[Tensor | None] = [None]
    handles = []
    heads = model.config.num_attention_heads
    for name, module in model.named_modules():
        listen = _listener(name, module, family, heads, squares, mask)
        if listen is not None:
            handles.append(listen)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    count = 0
    try:
        for batch in batches:
            count += 1
            given = {k: v.to(model.device) for k, v in batch.items() if isinstance(v, Tensor)}
            mask[0] = given.get("attention_mask")
            with torch.no_grad():
                model(**given)
            _check_finite(squares, count - 1)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    if not count:
        raise ValueError("batches must hold at least one batch, got none.")
    return _gathered({name: total.sqrt().cpu() for name, total in squares.items()}, family)


def _listener(
    name: str,
    module: Any,
    family: Family,
    heads: int,
    squares: dict[str, Tensor],
    mask: list[Tensor | None],
) -> Any:
    """Listen to a module, if it is one whose input or output tells; return the hook's handle."""

    def note(activations: Tensor) -> None:
        size = _mean_size(activations, mask[0]).square().sum(0)
        squares[name] = squares[name] + size if name in squares else size

    reads: Callable[[Tensor], Tensor] | None = None
    if f".{name}".endswith(f".{family.attention}"):
        reads = lambda x: x.unflatten(-1, (heads, -1)).norm(dim=-1)  # noqa: E731
    elif f".{name}".endswith(f".{family.neurons}"):
        reads = lambda x: x  # noqa: E731
    if reads is not None:
        return module.register_forward_pre_hook(lambda own, given: note(reads(given[0].double())))
    is_norm = [p.ndim for p in module.parameters(recurse=False)] in ([1], [1, 1])
    if is_norm and roles_of(f"{name}.weight", family)[1] == ("hidden",):
        return module.register_forward_hook(lambda own, given, output: note(output.double()))
    return None


def _check_finite(squares: Mapping[str, Tensor], number: int) -> None:
    for name, total in squares.items():
        if not total.isfinite().all():
            raise ValueError(
                f"batches: the activations of {name!r} are not finite after batch {number}, "
                "counted from 0, so that nothing can be ranked by them. Leave this batch out, or, "
                "where numbers overflow, measure in single precision, on model.float()."
            )


def _mean_size(activations: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean absolute value over each sequence.

    Shape:
        - activations: ``(B, T, n)``, or ``(B, n)`` of one position a sample.
        - mask: ``(B, T)``, or None for all positions.
        - result: ``(B, n)``.
    """
    sizes = activations.abs()
    if sizes.ndim == 2:
        return sizes
    if mask is None or mask.shape != sizes.shape[:2]:
        return sizes.mean(1)
    counts = mask[..., None].to(sizes)
    sizes = (sizes * counts).where(counts != 0.0, 0.0)  # NaN where nothing is attended
    return sizes.sum(1) / counts.sum(1).clamp(min=1.0)


def _gathered(found: dict[str, Tensor], family: Family) -> Importance:
    """Sort what was measured by what it is of."""
    neurons, heads, hidden = [], [], []
    for name, importance in found.items():
        if f".{name}".endswith(f".{family.attention}"):
            heads.append(importance)
        elif f".{name}".endswith(f".{family.neurons}"):
            neurons.append(importance)
        else:
            hidden.append(importance)
    return Importance(torch.stack(hidden).sum(0), neurons, heads)
