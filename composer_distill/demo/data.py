"""scikit-learn's bundled digits as whole tensors, and the loaders that index them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from composer.utils import dist
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

CLASSES = 10
_SPLIT_SEED = 0

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class DigitSet(Dataset[Batch]):
    """Images with their labels.

    Args:
        images: Grey values in [0, 1].
        labels: The digit of each image.

    Shape:
        images: ``(N, 1, 8, 8)``; labels: ``(N,)``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return a whole batch at once, which spares one call and one copy per image."""
        return self.subset(torch.as_tensor(indices)).tensors

    @property
    def tensors(self) -> Batch:
        """The images and the labels."""
        return self.images, self.labels

    def subset(self, indices: Tensor) -> "DigitSet":
        """Return the images and labels at ``indices``."""
        return DigitSet(self.images[indices], self.labels[indices])


def load_split(train_images: int) -> tuple[DigitSet, DigitSet]:
    """Return the 1797 digits as a training set of ``train_images`` and a test set of the rest."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.as_tensor(digits, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED))
    everything = DigitSet(images, labels)
    return everything.subset(order[:train_images]), everything.subset(order[train_images:])


def few_labels(data: DigitSet, per_class: int, seed: int) -> DigitSet:
    """Return ``per_class`` images of each digit, drawn by ``seed``."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    of_class = [order[data.labels[order] == digit][:per_class] for digit in range(CLASSES)]
    return data.subset(torch.cat(of_class))


def without_labels(images: Tensor) -> DigitSet:
    """Return ``images`` under a placeholder label: the true ones are never handed in."""
    return DigitSet(images, torch.zeros(len(images), dtype=torch.int64))


def make_loader(
    data: DigitSet, batch_size: int, seed: int, transform: Callable[[Batch], Batch] | None = None
) -> DataLoader[Batch]:
    """Return full batches of ``data`` in an order that depends on ``seed`` alone.

    Args:
        data: What to read.
        batch_size: Images in a batch, at most ``len(data)``.
        seed: Seed of the order.
        transform: What to do to each batch, such as an augmentation.
    """

    def finish(batch: Any) -> Batch:
        return transform(batch) if transform else batch

    sampler = dist.get_sampler(data, shuffle=True, drop_last=True, seed=seed)
    return DataLoader(
        data,
        batch_size=min(batch_size, len(data)),
        sampler=sampler,
        drop_last=True,
        collate_fn=finish,
    )
