"""Distil several teachers for the cost of one: sampling, and a schedule.

Three convolutional networks learn scikit-learn's digits from different initial weights. A small
perceptron is then trained four times from the same initial weights, on the same batches: alone; by
one teacher; by the mean of all three, which costs three forwards a step; and by one of the three
drawn for each step, which costs one. The weight of distillation rises from 0 to 0.9 over the first
tenth of training.

    pip install '.[demo]'  # in a clone of the repository
    python docs/examples/several_teachers.py
"""

import argparse
import time

import torch
from composer import Trainer
from composer.models import ComposerClassifier
from composer.optim import CosineAnnealingScheduler, LinearScheduler
from composer.utils import dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from composer_distill import Distillation, KLDivergence


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Return 1000 digits to train on and 797 to test on."""
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1000], order[1000:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def make_teacher(seed: int) -> ComposerClassifier:
    """Return an untrained convolutional network."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(512, 10),
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


def train(
    model: ComposerClassifier,
    data: TensorDataset,
    steps: int,
    seed: int,
    distillation: Distillation | None = None,
) -> float:
    """Train a model in place, and return the seconds that it took."""
    sampler = dist.get_sampler(data, shuffle=True, drop_last=True, seed=seed)
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(data, batch_size=64, sampler=sampler, drop_last=True),
        max_duration=f"{steps}ba",
        optimizers=torch.optim.AdamW(model.parameters(), lr=3e-3),
        schedulers=CosineAnnealingScheduler(),
        algorithms=distillation,
        seed=seed,
        progress_bar=False,
    )
    start = time.process_time()
    trainer.fit()
    seconds = time.process_time() - start
    trainer.close()
    return seconds


@torch.no_grad()
def show(name: str, model: ComposerClassifier, data: TensorDataset, seconds: float) -> None:
    """Print accuracy, mean negative log-likelihood and the seconds of training."""
    images, labels = data.tensors
    logits = model.eval()((images, labels))
    accuracy = 100 * (logits.argmax(-1) == labels).float().mean().item()
    nll = F.cross_entropy(logits, labels).item()
    print(f"{name:<24} {accuracy:6.2f} %  {nll:.3f} nats  {seconds:5.1f} CPU s")


def main(arguments: list[str] | None = None) -> None:
    """Train three teachers and four students."""
    parser = argparse.ArgumentParser(description="Distil several teachers at the cost of one.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="too short to be a result")
    given = parser.parse_args(arguments)
    teacher_steps, steps = (60, 100) if given.fast else (600, 1500)
    train_set, test_set = load_data()

    teachers = [make_teacher(seed) for seed in (100, 101, 102)]
    for index, teacher in enumerate(teachers):
        seconds = train(teacher, train_set, teacher_steps, seed=100 + index)
        show(f"teacher {index}", teacher, test_set, seconds)

    loss = KLDivergence(temperature=4.0)
    warm_up = LinearScheduler(alpha_i=0.0, alpha_f=0.9, t_max="0.1dur")
    students = {
        "alone": None,
        "one teacher": Distillation(teachers[0], loss, kd_loss_weight=warm_up),
        # The mean of probabilities is the target that one forward KL at a time averages to
        "mean of three": Distillation(
            teachers, loss, kd_loss_weight=warm_up, combine="probabilities"
        ),
        "one of three a step": Distillation(
            teachers, loss, kd_loss_weight=warm_up, n_teachers_to_sample=1
        ),
    }
    for name, distillation in students.items():
        student = make_student(given.seed)
        seconds = train(student, train_set, steps, given.seed, distillation)
        show(f"student, {name}", student, test_set, seconds)


if __name__ == "__main__":
    main()
