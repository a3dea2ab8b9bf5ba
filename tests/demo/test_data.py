import torch
from sklearn.datasets import load_digits

from composer_distill.demo.data import few_labels, load_split, make_loader, without_labels


def rows(data):
    return {tuple(row) for row in data.images.flatten(1).tolist()}


def test_the_split_shares_no_image_and_loses_none():
    train, test = load_split(1000)
    original = load_digits()
    assert (len(train), len(test)) == (1000, 797)
    assert rows(train).isdisjoint(rows(test))
    assert rows(train) | rows(test) == {tuple(row / 16) for row in original["data"]}


def test_images_keep_their_labels():
    train, _ = load_split(1000)
    original = load_digits()
    truth = {
        tuple(row / 16): digit
        for row, digit in zip(original["data"], original["target"], strict=True)
    }
    pairs = zip(train.images.flatten(1).tolist(), train.labels.tolist(), strict=True)
    assert all(truth[tuple(row)] == digit for row, digit in pairs)


def test_few_labels_are_balanced_and_depend_on_the_seed():
    train, _ = load_split(1000)
    few = few_labels(train, 5, seed=1)
    assert few.labels.bincount().tolist() == [5] * 10
    assert rows(few) <= rows(train)
    assert torch.equal(few.images, few_labels(train, 5, seed=1).images)
    assert not torch.equal(few.images, few_labels(train, 5, seed=2).images)


def test_without_labels_keeps_images_only():
    train, _ = load_split(1000)
    bare = without_labels(train.images)
    assert torch.equal(bare.images, train.images)
    assert bare.labels.unique().tolist() == [0]


def test_batches_are_full_and_cover_different_images():
    train, _ = load_split(1000)
    batches = list(make_loader(train, 64, seed=1))
    assert [len(labels) for _, labels in batches] == [64] * 15
    images = torch.cat([images for images, _ in batches]).flatten(1)
    assert len({tuple(row) for row in images.tolist()}) == 15 * 64


def test_a_set_smaller_than_a_batch_is_one_batch():
    train, _ = load_split(1000)
    batches = list(make_loader(few_labels(train, 5, seed=1), 64, seed=1))
    assert [len(labels) for _, labels in batches] == [50]


def test_a_batch_is_transformed_as_a_whole():
    train, _ = load_split(1000)
    plain = next(iter(make_loader(train, 64, seed=1)))
    turned = next(iter(make_loader(train, 64, 1, lambda batch: (-batch[0], batch[1]))))
    assert torch.equal(turned[0], -plain[0])
    assert torch.equal(turned[1], plain[1])
