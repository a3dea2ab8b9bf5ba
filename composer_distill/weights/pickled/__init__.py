"""Pickles, read as data: no name in them is looked up, and nothing of theirs is called."""
