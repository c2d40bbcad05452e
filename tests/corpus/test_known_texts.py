"""Passages are found by their title and text, not by their ids."""

import hashlib

from imprag.corpus import Passage
from imprag.corpus.passage import KnownTexts, text_hashes


def test_a_text_is_found_at_its_first_place() -> None:
    texts = [("ab", "c"), ("a", "bc"), ("", "abc"), ("a", "bc"), ("é", "x")]
    known = KnownTexts(text_hashes([Passage("", *text) for text in texts]))
    asked = [("a", "bc"), ("", "abc"), ("ab", "c"), ("é", "x"), ("", "new"), ("abc", "")]
    found = known.find([Passage(f"p{n}", *text) for n, text in enumerate(asked)])
    assert found.tolist() == [1, 2, 0, 4, -1, -1]
    assert known.find([]).tolist() == []


def test_a_hash_is_that_of_the_kv_format() -> None:
    (made,) = text_hashes([Passage("", "é", "x")])
    expected = hashlib.blake2b(b"\2" + bytes(7) + "éx".encode(), digest_size=16).digest()
    assert made.tobytes() == expected
