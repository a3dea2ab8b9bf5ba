"""How good a language model is on held-out text, and how like its teacher."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_calibration_error

_BINS = 15
_BATCH = 4


@dataclass(frozen=True)
class Scores:
    """One model on one text.

    Args:
        nll: Mean negative log-likelihood of a token, in nats.
        agreement: Share of positions at which teacher and student put the same token first.
        ece: Expected calibration error of the token put first, over 15 bins of equal width.
    """

    nll: float
    agreement: float
    ece: float


@torch.no_grad()
def score(model: nn.Module, windows: Tensor, first: Tensor | None = None) -> tuple[Scores, Tensor]:
    """Return the scores of ``model``, and the token that it puts first at each position.

    Args:
        model: A causal language model of transformers; its mode is left as it was.
        windows: The text.
        first: The tokens that the teacher puts first; None where the model is the teacher.

    Shape:
        windows: ``(N, length)``; first: ``(N, length - 1)``.
    """
    mode = model.training
    model.eval()
    nats, confidences, answers = [], [], []
    for ids in windows.split(_BATCH):
        logits = model(input_ids=ids).logits[:, :-1]
        losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        largest, answer = logits.softmax(-1).max(-1)
        nats.append(losses)
        confidences.append(largest)
        answers.append(answer)
    model.train(mode)
    found = torch.cat(answers)
    right = (found == windows[:, 1:]).flatten()
    ece = binary_calibration_error(torch.cat(confidences).flatten(), right.long(), n_bins=_BINS)
    agreement = 1.0 if first is None else (found == first).double().mean().item()
    return Scores(torch.cat(nats).mean().item(), agreement, ece.item()), found
