"""Texts that were written ahead of the batches that train on them."""

import io

import torch
from composer.utils import dist

from composer_distill.on_policy.writing import Text


class Store:
    """Texts of one generation that are still to be trained on.

    All ranks' texts are kept on each, for a checkpoint is written by one of them.
    """

    def __init__(self) -> None:
        self.written_at = 0
        self._texts: list[list[Text]] = [[]]

    def __len__(self) -> int:
        return len(self._texts[0])

    def fill(self, texts: list[Text], batch: int) -> None:
        """Keep what was written at a batch; each rank gives as many texts."""
        self.written_at = batch
        several = dist.get_world_size() > 1 and len(texts) > 1
        self._texts = dist.all_gather_object(texts) if several else [texts]

    def take(self) -> Text:
        """Return this rank's next text, and keep it no longer."""
        own = dist.get_global_rank() if len(self._texts) > 1 else 0
        text = self._texts[own][0]
        self._texts = [texts[1:] for texts in self._texts]
        return text

    def state_dict(self) -> bytes:
        """Return what a resumed run needs, in bytes, which any kind of checkpoint keeps."""
        buffer = io.BytesIO()
        torch.save({"written_at": self.written_at, "texts": self._texts}, buffer)
        return buffer.getvalue()

    def load_state_dict(self, state: bytes) -> None:
        """Go on with what a checkpoint kept; to another number of ranks it does not fit."""
        saved = torch.load(io.BytesIO(state), weights_only=True, map_location="cpu")
        texts = saved["texts"]
        fits = len(texts) == dist.get_world_size()
        self.written_at, self._texts = int(saved["written_at"]), texts if fits else [[]]
