"""Texts that are tokens already: a folder of JSONL or MDS files, as batches of a language model."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from composer_distill.caching.extra import need

NAMES = ("input_ids", "tokens")
"""What a text's tokens may be called."""


def token_loader(
    folder: str | Path, batch_size: int = 8, *, max_length: int | None = None, padding: int = 0
) -> DataLoader[Any]:
    """Return batches of ``input_ids`` and ``attention_mask``, padded on the right.

    Args:
        folder: Files ``*.jsonl`` with an object a line whose ``input_ids`` are a list of numbers,
            or what ``MDSWriter`` wrote, with a column ``input_ids`` or ``tokens``: an array, or the
            bytes of 64-bit integers.
        batch_size: How many texts a batch holds.
        max_length: Where texts are cut off; None for nowhere.
        padding: The token that fills up, which no model reads.

    Raises:
        FileNotFoundError: If there are no such files.
        ValueError: If a text has no tokens.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "texts.jsonl").write_text('{"input_ids": [5, 6]}')
        >>> next(iter(token_loader(folder)))["input_ids"]
        tensor([[5, 6]])
    """
    folder = Path(folder).expanduser()
    collate = partial(_collate, max_length=max_length, padding=padding)
    if (folder / "index.json").is_file():
        streaming = need("streaming")
        data: Any = streaming.StreamingDataset(
            local=str(folder), shuffle=False, batch_size=batch_size
        )
        return DataLoader(data, batch_size, collate_fn=collate)
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no *.jsonl and no index.json of MDS files. Give a folder of texts "
            "that are tokens already."
        )
    return DataLoader(_Lines(files), batch_size, collate_fn=collate)


class _Lines(Dataset[Any]):
    """The objects of JSONL files, found by where their lines begin."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._places = [(path, start) for path in files for start in _line_starts(path)]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        path, start = self._places[index]
        with path.open("rb") as stream:
            stream.seek(start)
            return json.loads(stream.readline())


def _line_starts(path: Path) -> Iterator[int]:
    start = 0
    with path.open("rb") as stream:
        for line in stream:
            if line.strip():
                yield start
            start += len(line)


def _collate(
    samples: Sequence[Mapping[str, Any]], *, max_length: int | None, padding: int
) -> dict[str, Tensor]:
    texts = [_tokens(sample)[:max_length] for sample in samples]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=padding)
    lengths = torch.tensor([len(text) for text in texts])
    mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
    return {"input_ids": ids, "attention_mask": mask.long()}


def _tokens(sample: Mapping[str, Any]) -> Tensor:
    found = next((sample[name] for name in NAMES if name in sample), None)
    if isinstance(found, bytes):
        found = np.frombuffer(found, np.int64)
    if found is None or len(found) == 0:
        raise ValueError(
            f"a text has no {' and no '.join(NAMES)}, but {list(sample)}. Tokenize the texts first."
        )
    return torch.as_tensor(np.asarray(found, np.int64).copy())
