"""Teachers are made of the same checkpoints as their weights."""

from tests.weights.conftest import trained, trained_bert, witness, zoo

__all__ = ["trained", "trained_bert", "witness", "zoo"]
