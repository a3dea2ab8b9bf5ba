"""Distil an image classifier from a checkpoint.

The data are scikit-learn's 1797 handwritten digits, which come with the package. A convolutional
network learns 1000 of them first and leaves a Composer checkpoint, as a teacher of yours would
have. Then a small perceptron is trained twice from the same initial weights, on the same batches:
alone, and taught by the checkpoint. The scores are of the 797 images that no model trained on.

    pip install '.[demo]'  # in a clone of the repository
    python docs/examples/images.py

For a checkpoint of your own, give it as ``--teacher`` and change ``make_teacher``.
"""

import argparse
from pathlib import Path

import torch
from composer import Trainer
from composer.models import ComposerClassifier
from composer.optim import CosineAnnealingScheduler
from composer.utils import dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate

from composer_distill import Distillation, KLDivergence, Teacher


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Return 1000 digits to train on and 797 to test on."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1000], order[1000:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def make_teacher() -> ComposerClassifier:
    """Return the untrained teacher: the model that the checkpoint's weights go into."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    return ComposerClassifier(network, num_classes=10)


def make_student(seed: int) -> ComposerClassifier:
    """Return the untrained student; equal seeds give equal weights."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    return ComposerClassifier(network, num_classes=10)


def shifted(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Collate a batch and move its images by up to one pixel: the teacher's augmentation."""
    images, labels = default_collate(samples)
    down, right = torch.randint(3, (2,)).tolist()
    return F.pad(images, (1, 1, 1, 1))[..., down : down + 8, right : right + 8], labels


def train(
    model: ComposerClassifier,
    data: TensorDataset,
    steps: int,
    seed: int,
    distillation: Distillation | None = None,
    augment: bool = False,
) -> Trainer:
    """Train a model in place; with and without distillation all else is the same."""
    # Composer's sampler shuffles by its seed alone, so that both students see the same batches
    sampler = dist.get_sampler(data, shuffle=True, drop_last=True, seed=seed)
    collate = shifted if augment else default_collate
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(
            data, batch_size=64, sampler=sampler, drop_last=True, collate_fn=collate
        ),
        max_duration=f"{steps}ba",
        optimizers=torch.optim.AdamW(model.parameters(), lr=3e-3),
        schedulers=CosineAnnealingScheduler(),
        algorithms=distillation,
        seed=seed,
        progress_bar=False,
    )
    trainer.fit()
    return trainer


@torch.no_grad()
def show(name: str, model: ComposerClassifier, data: TensorDataset) -> None:
    """Print accuracy and mean negative log-likelihood."""
    images, labels = data.tensors
    logits = model.eval()((images, labels))
    accuracy = 100 * (logits.argmax(-1) == labels).float().mean().item()
    nll = F.cross_entropy(logits, labels).item()
    print(f"{name:<20} {accuracy:6.2f} %  {nll:.3f} nats")


def main(arguments: list[str] | None = None) -> None:
    """Train the teacher if it is not there yet, then the student alone and distilled."""
    parser = argparse.ArgumentParser(description="Distil an image classifier from a checkpoint.")
    parser.add_argument("--teacher", type=Path, default=Path("digits-teacher.pt"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="too short to be a result")
    given = parser.parse_args(arguments)
    teacher_steps, steps = (100, 150) if given.fast else (1500, 2500)
    train_set, test_set = load_data()

    if not given.teacher.exists():
        trainer = train(make_teacher(), train_set, teacher_steps, seed=0, augment=True)
        trainer.save_checkpoint(str(given.teacher))

    # The weights are loaded here, and what does not fit is an error here
    teacher = Teacher(make_teacher(), checkpoint=given.teacher)
    distillation = Distillation(
        teachers=teacher,
        kd_loss_fn=KLDivergence(temperature=4.0),
        kd_loss_weight=0.9,
        org_loss_weight=0.1,
    )
    alone, distilled = make_student(given.seed), make_student(given.seed)
    train(alone, train_set, steps, given.seed)
    train(distilled, train_set, steps, given.seed, distillation)

    show("teacher", teacher.model, test_set)
    show("student alone", alone, test_set)
    show("student distilled", distilled, test_set)


if __name__ == "__main__":
    main()
