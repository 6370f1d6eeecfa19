import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
from scholarch.data.tokenizer import BASE, Tokenizer
from scholarch.errors import UserError

CAPTIONS = [
    "a red circle in the top left",
    "a blue square in the bottom right",
    "a green triangle on the left, and it's small",
    "two red squares and a blue circle",
] * 8


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.learned(CAPTIONS, 700)


def test_ids_of_clip_without_merges() -> None:
    """The alphabet of bytes by hand: printable ones in their order, then the others; word ends 256 on."""
    plain = Tokenizer([], BASE)
    assert (plain.start, plain.end, plain.size) == (512, 513, 514)
    # "!" is byte 33 and comes first; "a" is 64 further; "é" is the bytes C3 A9; the last one ends the word.
    assert plain.encode("a!", 6).tolist() == [512, 64 + 256, 0 + 256, 513, 0, 0]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = [*printable, *(byte for byte in range(256) if byte not in printable)]
    assert plain.encode("é", 5).tolist() == [512, order.index(0xC3), 256 + order.index(0xA9), 513, 0]


def test_merges_by_hand() -> None:
    merges = [("r", "e"), ("re", "d</w>"), ("i", "n</w>")]
    made = Tokenizer(merges, 520)
    assert made.size == 517
    assert made.encode("Red IN re", 8).tolist() == [
        515,
        513,
        514,
        order_of("r"),
        256 + order_of("e"),
        516,
        0,
        0,
    ]
    assert Tokenizer(merges, 515).size == 515  # as many as the tower has ids for


def order_of(letter: str) -> int:
    return ord(letter) - 33


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle in the top left",
        "",
        "Ein großes rotes Dreieck",
        "красный круг слева",
        "左上に赤い丸がある",
        "دائرة حمراء",
        "a 🔴 circle and a 👩‍🚀",
        "1234 it's 50% & more",
    ],
)
def test_round_trips(tokenizer: Tokenizer, caption: str) -> None:
    ids = tokenizer.encode(caption, 200)
    assert ids[0] == tokenizer.start
    assert ids.max() == tokenizer.end
    shown = tokenizer.decode(ids).replace(" ", "")
    assert shown == caption.lower().replace(" ", "")


@pytest.mark.parametrize("caption", ["red circle " * 500, "🔴" * 300, "ж" * 1000, "x" * 100_000])
def test_long_captions_are_cut_and_keep_their_end(tokenizer: Tokenizer, caption: str) -> None:
    ids = tokenizer.encode(caption, 77)
    assert ids.shape == (77,)
    assert ids.dtype == np.int64
    assert ids[0] == tokenizer.start
    assert ids[76] == tokenizer.end == ids.max()
    whole = tokenizer.encode(caption, 1000)
    assert ids[:76].tolist() == whole[:76].tolist()


def test_an_empty_caption_and_white_space_are_two_marks(tokenizer: Tokenizer) -> None:
    for caption in ("", "   ", "\n\t"):
        assert tokenizer.encode(caption, 5).tolist() == [tokenizer.start, tokenizer.end, 0, 0, 0]


def test_case_spaces_and_entities_make_no_difference(tokenizer: Tokenizer) -> None:
    plain = tokenizer.encode("a red & blue circle", 20).tolist()
    assert tokenizer.encode("  A  Red &amp;\nBLUE circle ", 20).tolist() == plain
    assert tokenizer.encode("a red &amp;amp; blue circle", 20).tolist() == plain


def test_what_is_learned_is_short_for_its_captions_and_the_same_each_time(tokenizer: Tokenizer) -> None:
    again = Tokenizer.learned(CAPTIONS, 700)
    assert again.merges == tokenizer.merges
    assert tokenizer.size <= 700
    ids = tokenizer.encode("a red circle", 10)
    assert (ids > 0).sum() == 5  # a word is a token


def test_a_file_of_merges_is_read_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    plain, packed = tmp_path / "merges.txt", tmp_path / "merges.txt.gz"
    plain.write_text(tokenizer.text())
    packed.write_bytes(gzip.compress(tokenizer.text().encode()))
    for path in (plain, packed):
        found = Tokenizer.read(path, 700, "captions.merges")
        assert found.merges == tokenizer.merges
        assert found.encode(CAPTIONS[0], 20).tolist() == tokenizer.encode(CAPTIONS[0], 20).tolist()
    smaller = Tokenizer.read(plain, 540, "captions.merges")
    assert smaller.merges == tokenizer.merges[:26]
    assert smaller.size == 540


def test_it_travels_to_another_process(tokenizer: Tokenizer) -> None:
    there = pickle.loads(pickle.dumps(tokenizer))
    assert there.encode(CAPTIONS[1], 20).tolist() == tokenizer.encode(CAPTIONS[1], 20).tolist()


@pytest.mark.parametrize(
    ("text", "words"),
    [("one\n", "merge 1 is no pair"), ("r e\nred x\n", "merge 2 joins red and x"), ("a b c\n", "no pair")],
)
def test_a_file_that_is_none(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "merges.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        Tokenizer.read(path, 700, "captions.merges")
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.read(tmp_path / "none.txt", 700, "captions.merges")
    (tmp_path / "broken.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer.read(tmp_path / "broken.gz", 700, "captions.merges")
