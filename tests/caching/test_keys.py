"""Keys: equal exactly where a teacher reads the same."""

from itertools import combinations

import pytest
import torch

from composer_distill.caching.keys import read_batch

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])


def keys(batch, fields=None, labels=("labels",)):
    return [tuple(key.tolist()) for key in read_batch(batch, fields, labels).keys]


def as_list(mask):
    return mask.tolist()


def text(ids, mask=None, **others):
    mask = torch.ones_like(ids) if mask is None else torch.tensor(mask)
    return {"input_ids": ids, "attention_mask": mask, **others}


def test_a_key_is_of_the_sample_and_not_of_the_batch():
    batch = torch.randn(4, 3)
    order = torch.tensor([2, 0, 3, 1])
    assert keys(batch[order]) == [keys(batch)[i] for i in order]
    assert [keys(batch[i : i + 1])[0] for i in range(4)] == keys(batch)
    assert len(set(keys(batch))) == 4


@pytest.mark.parametrize("left", [0, 1, 3])
@pytest.mark.parametrize("right", [0, 2])
def test_padding_on_either_side_is_left_out(left, right):
    padded = torch.nn.functional.pad(IDS, (left, right), value=99)
    mask = [[0] * left + [1, 1, 1] + [0] * right] * 2
    types = torch.zeros_like(padded)
    assert keys(text(padded, mask)) == keys(text(IDS)) == keys({"input_ids": IDS})
    one = keys(text(padded, mask, token_type_ids=types))
    assert one == keys(text(IDS, token_type_ids=types[:, :3]))


def test_what_differs_has_another_key():
    ids = IDS[:1]
    different = [
        text(ids),
        text(ids.int()),
        text(ids + 1),
        text(ids, [[1, 0, 1]]),  # a hole is no padding
        text(ids, [[1, 2, 2]]),  # two texts packed into one
        text(ids[:, :2]),
        text(ids, token_type_ids=torch.zeros_like(ids)),
        {"inputs": ids},
        ids,
        ids.float(),
        ids.reshape(1, 3, 1),
        ids.bfloat16(),
    ]
    found = [keys(batch)[0] for batch in different]
    assert all(one != other for one, other in combinations(found, 2))


def test_of_packed_texts_it_counts_whether_a_mask_was_given():
    places = torch.tensor([[0, 1, 2], [0, 1, 0]])
    given = keys(text(IDS, position_ids=places))
    none = keys({"input_ids": IDS, "position_ids": places})
    assert given[0] == none[0]
    assert given[1] != none[1]
    padded = torch.nn.functional.pad
    wider = text(padded(IDS, (2, 1)), [[0, 0, 1, 1, 1, 0]] * 2, position_ids=padded(places, (2, 1)))
    assert keys(wider) == given
    both = keys(text(IDS, position_ids=places[1:]))  # one for all rows
    assert not set(both) & set(keys({"input_ids": IDS, "position_ids": places[1:]}))


def test_a_mask_that_no_batch_had_is_read_where_the_teacher_would():
    places = torch.tensor([[0, 1, 2], [0, 1, 0]])
    fields, beside = ["input_ids", "position_ids"], {"lacked": ["attention_mask"]}
    without = {"input_ids": IDS, "position_ids": places}
    kept = read_batch(without, fields, **beside).keys.tolist()
    found = read_batch(text(IDS, position_ids=places), fields, **beside).keys.tolist()
    assert (kept[0] == found[0], kept[1] == found[1]) == (True, False)
    mask = [[0, 1, 1, 1], [0, 1, 1, 1]]
    padded = [torch.nn.functional.pad(each, (1, 0)) for each in (IDS, places)]
    wider = read_batch(text(padded[0], mask, position_ids=padded[1]), fields, **beside)
    assert wider.keys.tolist() == found
    assert read_batch(without, fields).keys.tolist() == kept


def test_what_stands_in_a_hole_is_not_read():
    mask = [[1, 0, 1]]
    assert keys(text(IDS[:1], mask)) == keys(text(torch.tensor([[5, 77, 7]]), mask))


@pytest.mark.parametrize("name", ["inputs_embeds", "input_values", "scores"])
def test_a_mask_over_what_it_can_not_cut_is_read_whole(name):
    shape = (1, 3, 2) if name == "inputs_embeds" else (1, 3)
    values = torch.randn(shape)
    masks = [[[1, 1, 0]], [[0, 1, 1]], [[1, 1, 1]]]
    found = {keys({name: values, "attention_mask": torch.tensor(m)})[0] for m in masks}
    assert len(found) == 3
    beside = {keys(text(IDS[:1], m, **{name: values}))[0] for m in masks}
    assert len(beside) == 3


def test_labels_are_read_only_where_a_decoder_is_made_of_them():
    one, other = (text(IDS, labels=IDS + shift) for shift in (0, 1))
    assert keys(one) == keys(other)
    fields = ["attention_mask", "input_ids", "labels"]
    assert keys(one, fields) != keys(other, fields)
    longer = text(IDS, labels=torch.nn.functional.pad(IDS, (0, 2), value=-100))
    assert keys(longer, fields) == keys(one, fields)
    assert as_list(read_batch(longer, fields, ["labels"]).mask) == [[True] * 3 + [False] * 2] * 2


def test_entries_that_the_teacher_did_not_read_do_not_matter():
    fields = ["attention_mask", "input_ids"]
    assert keys(text(IDS, index=torch.tensor([3, 4])), fields) == keys(text(IDS), fields)
    with pytest.raises(ValueError, match="lacks 'pixel_values', which the teacher read"):
        keys(text(IDS), ["input_ids", "pixel_values"])


def test_batches_of_every_form():
    inputs, labels = torch.randn(2, 3), torch.tensor([0, 1])
    assert keys((inputs, labels)) == keys([inputs, 1 - labels]) == keys(inputs)
    assert keys((text(IDS), labels)) == keys(text(IDS))
    strings = {"image": inputs, "caption": ["a", "b"], "scale": torch.tensor(2.0)}
    assert keys(strings) != keys({**strings, "caption": ["a", "c"]})
    assert keys(strings)[0] == keys({**strings, "caption": ["a", "c"]})[0]
    assert not set(keys(strings)) & set(keys({**strings, "scale": torch.tensor(3.0)}))


def test_what_has_no_values_is_refused():
    with pytest.raises(TypeError, match="holds a object, which has no values to know it by"):
        keys({"input_ids": IDS, "extra": object()})
    with pytest.raises(ValueError, match="no tensor whose first axis counts the samples"):
        keys({"scale": torch.tensor(1.0)})
