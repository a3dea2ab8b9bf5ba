"""Prompts out of batches and batches out of prompts, against loops."""

import pytest
import torch
from on_policy.by_hand import batches, prompts_by_hand

from composer_distill.on_policy.drawing import is_drawn, stream_seed
from composer_distill.on_policy.text import as_labels, before_labels, joined, left_padded, lengths


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_prompt_is_what_stands_before_the_first_label(side):
    for batch in batches(n=5, size=6):
        if side == "left":
            batch = {name: value.flip(-1) for name, value in batch.items()}
            batch["labels"] = batch["labels"].flip(-1).roll(1, -1)
        chosen = before_labels(batch["labels"], batch["attention_mask"] != 0)
        found = [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], chosen, strict=True)]
        assert found == prompts_by_hand(batch)


def test_plain_text_goes_on_from_its_first_token_and_a_row_without_labels_is_all_prompt():
    attended = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]).bool()
    labels = torch.tensor([[-100, 5, 6, 7], [-100, -100, -100, -100]])
    expected = [[False, True, False, False], [True, True, True, False]]
    assert before_labels(labels, attended).tolist() == expected


def test_joining_is_that_of_a_loop():
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 9, (size,), generator=generator) for size in (1, 4, 2, 7)]
    written = torch.randint(0, 5, (4, 6), generator=generator)  # 2 ends a sequence
    written[0, 0] = 2  # at once
    written[1] = written[1].masked_fill(written[1] == 2, 4)  # never
    counted, ended = lengths(written, [2])
    ids, mask = left_padded(prompts, pad=2)
    made = joined(prompts, written, counted, pad=2)
    width = made["input_ids"].shape[1]
    for row, prompt in enumerate(prompts):
        own = written[row].tolist()
        own = own[: own.index(2) + 1] if 2 in own else own
        assert (int(counted[row]), bool(ended[row])) == (len(own), own[-1] == 2)
        rest = width - len(prompt) - len(own)
        assert made["input_ids"][row].tolist() == prompt.tolist() + own + [2] * rest
        assert made["labels"][row].tolist() == [-100] * len(prompt) + own + [-100] * rest
        assert made["attention_mask"][row].tolist() == [1] * (width - rest) + [0] * rest
        assert ids[row][mask[row] == 1].tolist() == prompt.tolist()
        assert mask[row].tolist() == sorted(mask[row].tolist())
        labels = as_labels(written, counted)[row].tolist()
        assert labels == own + [-100] * (int(counted.max()) - len(own))
    assert int(made["attention_mask"].sum(-1).max()) == width


def test_several_ids_may_end_a_sequence_and_none_must():
    written = torch.tensor([[5, 3, 2, 5], [2, 5, 5, 5]])
    assert lengths(written, [2, 3])[0].tolist() == [2, 1]
    counted, ended = lengths(written, [])
    assert (counted.tolist(), ended.tolist()) == ([4, 4], [False, False])


def test_draws_are_a_function_of_seed_and_batch_and_their_share_is_the_fraction():
    drawn = [is_drawn(0.3, seed=1, batch=batch) for batch in range(4000)]
    assert drawn == [is_drawn(0.3, seed=1, batch=batch) for batch in range(4000)]
    assert abs(sum(drawn) / 4000 - 0.3) < 0.03
    assert drawn != [is_drawn(0.3, seed=2, batch=batch) for batch in range(4000)]
    nested = [is_drawn(0.5, seed=1, batch=batch) for batch in range(4000)]
    assert all(more or not less for less, more in zip(drawn, nested, strict=True))
    assert not any(is_drawn(0.0, 0, batch) for batch in range(100))
    assert all(is_drawn(1.0, 0, batch) for batch in range(100))
    seeds = {stream_seed(s, b, r) for s in range(5) for b in range(5) for r in range(5)}
    assert len(seeds) == 125
