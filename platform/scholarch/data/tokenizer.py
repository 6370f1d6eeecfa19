"""CLIP's byte-pair tokens of captions (reference.md section 7), by the `tokenizers` library.

The vocabulary follows from a list of merges alone: 256 bytes, the same at the end of a word, the merges, and
the marks of start and end. The mark of the end has the largest id, by which a text tower finds it.
"""

from __future__ import annotations

import gzip
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scholarch.errors import UserError

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
VERSION = "#version: 0.2"
BASE = 514
"""Ids without any merge: bytes inside words, bytes that end them, and two marks."""
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
"""What is never merged across: endings, words, single digits, runs of other signs."""


class Tokenizer:
    """Captions to ids and back; picklable.

    Text is made lower case, HTML entities are read, and white space is made single; broken encodings are not
    mended.

    Args:
        merges: pairs of tokens, the first merged first.
        vocabulary: ids that a text tower has; merges beyond it are left out.

    Raises:
        UserError: if a merge joins what is not there.
    """

    def __init__(self, merges: Sequence[tuple[str, str]], vocabulary: int) -> None:
        from tokenizers import Tokenizer as Library
        from tokenizers import models, pre_tokenizers

        self.merges = tuple(merges[: max(vocabulary - BASE, 0)])
        # In order of their code points: printable bytes first, as CLIP numbers them.
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokens = [*alphabet, *(f"{sign}{WORD_END}" for sign in alphabet)]
        tokens += [first + second for first, second in self.merges]
        ids = {token: number for number, token in enumerate((*tokens, START, END))}
        for number, pair in enumerate(self.merges):
            if not ids.keys() >= set(pair) or ids[pair[0] + pair[1]] < max(ids[part] for part in pair):
                raise UserError(
                    f"merge {number + 1} joins {' and '.join(pair)}, which come after it or never"
                )
        self._library = _prepared(
            Library(models.BPE(vocab=ids, merges=list(self.merges), end_of_word_suffix=WORD_END))
        )
        self.start, self.end, self.size = ids[START], ids[END], len(ids)

    @staticmethod
    def read(path: Path, vocabulary: int, where: str) -> Tokenizer:
        """From a file of merges, a pair on each line: CLIP's `bpe_simple_vocab_16e6.txt.gz`, or a run's.

        Raises:
            UserError: if it is none.
        """
        try:
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot be read: {error}", where=where, fix="name a file of merges, or `learned`"
            ) from None
        return Tokenizer.parse(text, vocabulary, where)

    @staticmethod
    def parse(text: str, vocabulary: int, where: str) -> Tokenizer:
        """From the text of such a file.

        Raises:
            UserError: if it is none.
        """
        lines = text.split("\n")  # not splitlines: some signs of the alphabet end a line
        lines = [line for line in lines[1 if "#version" in lines[0] else 0 :] if line.strip()]
        merges: list[tuple[str, str]] = []
        for number, line in enumerate(lines[: max(vocabulary - BASE, 0)], 1):
            parts = line.split(" ")
            if len(parts) != 2:
                raise UserError(
                    f"merge {number} is no pair: {line!r}", where=where, fix="name a file of byte-pair merges"
                )
            merges.append((parts[0], parts[1]))
        try:
            return Tokenizer(merges, vocabulary)
        except UserError as error:
            raise UserError(str(error), where=where, fix="name a file of byte-pair merges") from None

    @staticmethod
    def learned(captions: Iterable[str], vocabulary: int) -> Tokenizer:
        """With the pairs that are most frequent in `captions`; the same for the same captions."""
        from tokenizers import Tokenizer as Library
        from tokenizers import models, pre_tokenizers, trainers

        library = _prepared(Library(models.BPE(end_of_word_suffix=WORD_END)))
        trainer = trainers.BpeTrainer(
            vocab_size=max(vocabulary, BASE),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            end_of_word_suffix=WORD_END,
            show_progress=False,
        )
        library.train_from_iterator((html.unescape(caption) for caption in captions), trainer)
        pairs: list[list[str]] = json.loads(library.to_str())["model"]["merges"]
        return Tokenizer([(first, second) for first, second in pairs], vocabulary)

    def text(self) -> str:
        """The merges as a file holds them."""
        return "\n".join([VERSION, *(f"{first} {second}" for first, second in self.merges), ""])

    def encode(self, caption: str, length: int) -> np.ndarray:
        """Ids [length] int64: start, the caption, end, then zeros; a long caption is cut before its end."""
        ids = self._library.encode(html.unescape(html.unescape(caption))).ids[: length - 2]
        found = np.zeros(length, dtype=np.int64)
        found[: len(ids) + 2] = [self.start, *ids, self.end]
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, without the marks and what follows the end; words are parted by single spaces."""
        from tokenizers.decoders import ByteLevel

        tokens: list[str] = []
        for number in ids:
            if number == self.end:
                break
            if number != self.start:
                tokens.append(str(self._library.id_to_token(int(number))))
        space = "Ġ"  # the byte 0x20 in the alphabet
        return str(ByteLevel().decode([token.replace(WORD_END, space) for token in tokens])).strip()


def _prepared(library: Any) -> Any:
    from tokenizers import Regex, normalizers, pre_tokenizers

    library.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return library
