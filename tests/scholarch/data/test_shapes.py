import numpy as np
import pytest
from scholarch.data.catalog import open_source
from scholarch.data.shapes import CELL, COLOURS, PLACES, ShapesSource, combinations, unseen
from scholarch.data.source import captions, has_captions


def test_combinations_are_parted_and_every_word_is_seen() -> None:
    seen, kept = combinations(False), combinations(True)
    assert len(seen) + len(kept) == 36
    assert not set(seen) & set(kept)
    assert len(kept) == 6
    for words in (0, 1):
        assert {pair[words] for pair in kept} <= {pair[words] for pair in seen}


def test_captions_say_what_is_painted() -> None:
    source = ShapesSource()
    for index in (0, 7, 100):
        large, small = source.things(index)
        assert source.classes is not None
        assert source.classes[source.label(index) or 0] == large.words
        said = source.captions(index)
        for caption in said[:3]:
            assert large.words in caption
            assert small.words in caption
        assert large.place in said[0]
        assert said[3:5] == (f"a {large.words}", f"a small {small.words}")
        for caption in said[5:]:
            assert large.colour in caption or large.shape in caption
        assert not unseen(large.colour, large.shape)
        pixels, mask = source.read(index).permute(1, 2, 0).numpy(), source.mask(index)
        for number, thing in ((1, large), (2, small)):
            there = mask == number
            assert abs(pixels[there].mean(axis=0) - COLOURS[thing.colour]).max() < 60
            middle = [int(places.min() + places.max()) // 2 for places in np.nonzero(there)]
            assert (middle[0] // CELL, middle[1] // CELL) == PLACES[thing.place]


def test_pictures_are_a_function_of_their_number() -> None:
    one, two = open_source("shapes-unseen"), open_source("shapes-unseen", "none")
    assert one.classes is not None
    assert two.classes is None
    assert np.array_equal(one.read(5).numpy(), two.read(5).numpy())
    assert not np.array_equal(one.read(5).numpy(), one.read(6).numpy())
    assert has_captions(one)
    assert captions(one, 5) == captions(two, 5)
    assert not has_captions(open_source("digits"))


def test_the_fingerprint_knows_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ShapesSource().fingerprint()
    assert ShapesSource().fingerprint() == before
    monkeypatch.setattr(ShapesSource, "captions", lambda *_: ("something else",))
    assert ShapesSource().fingerprint() != before
