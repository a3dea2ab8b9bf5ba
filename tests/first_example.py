"""Runs the first example of the README against whatever ``composer_distill`` is installed.

    python -I tests/first_example.py README.md

It needs nothing but the package, so that an otherwise empty environment can run it; ``-I`` keeps
the working directory and this one from being imported.
"""

import re
import sys
from pathlib import Path

import torch
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import composer_distill


def classifier():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    return ComposerClassifier(module, num_classes=10)


def main(readme):
    data = TensorDataset(torch.rand(32, 1, 8, 8), torch.randint(10, (32,)))
    names = {
        "teacher": classifier(),
        "student": classifier(),
        "train_dataloader": DataLoader(data, batch_size=8),
    }
    example = re.search(r"```python\n(.*?)```", Path(readme).read_text(), re.DOTALL).group(1)
    exec(example, names)
    batches = int(names["trainer"].state.timestamp.batch)
    where = Path(composer_distill.__file__).parent
    print(f"The README's first example trained {batches} batches with {where}")
    if batches != 4 or "site-packages" not in where.parts:
        sys.exit("It should have trained 4, with an installed package")


if __name__ == "__main__":
    main(sys.argv[1])
