"""How much is trained by ``composer-distill demo --real``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RealSettings:
    """All that the run depends on, beside the teacher and its texts.

    Args:
        layers: How many of the teacher's layers the students keep.
        length: Tokens in a window.
        batch_size: Windows in a batch.
        steps: Batches that each student trains on.
        points: How often each student is scored on the way.
        held_out: Windows that it is scored on.
        samples: Draws that are kept of each of the teacher's answers.
        learning_rate: AdamW's, of both students.
        seed: Of what is drawn to train on.
        smoke: Whether the run is too short to be a result.
    """

    layers: int = 10
    length: int = 64
    batch_size: int = 4
    steps: int = 100
    points: int = 5
    held_out: int = 64
    samples: int = 50
    learning_rate: float = 1e-3
    seed: int = 1
    smoke: bool = False


SMOKE = RealSettings(length=16, batch_size=2, steps=4, points=1, held_out=4, smoke=True)
