"""What all tests with LLM Foundry share; without it they are skipped."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here lies elsewhere


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """Folders by name: a tokenizer, teachers, and texts in each form that a loader reads."""
    from tests.foundry import world

    root = tmp_path_factory.mktemp("world")
    tokenizer = world.save_tokenizer(root / "tokenizer")
    found = {
        "root": root,
        "tokenizer": str(root / "tokenizer"),
        "student": world.save_llama(root / "student", seed=1),
        "teacher": world.save_llama(root / "teacher", seed=2, layers=2),
        "second": world.save_llama(root / "second", seed=3, hidden_size=12),
        "pairs": world.write_jsonl(root / "pairs"),
        "streamed": world.write_streamed_pairs(root / "streamed"),
        "rows": world.write_tokens(root / "rows", tokenizer),
    }
    config = world.recipe(
        found["tokenizer"],
        world.MPT | {"n_layers": 2},
        world.text(found["rows"]),
        save_folder=str(root / "mpt"),
        save_filename="teacher.pt",
    )
    world.run(config)
    return found | {"mpt": str(root / "mpt" / "teacher.pt")}
