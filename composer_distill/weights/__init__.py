"""Weights from files, of which nothing is executed."""
