"""What goes over the wire: sixteen words of a header, then digits.

All of it is added up over the ranks. Of 2 * 70 limbs that a tensor's sums may have, a few are other
than zero, and the same few at every step: they are the window, that all ranks know from the first
call, whose words are all limbs. Where a rank has anything outside of the window, also NaN or an
infinity, it says so in the header, and all repeat with all limbs.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core

LIMBS = _core.LIMBS
DIGITS = LIMBS - 2
WIDTH = 4  # digits: 96 bits and more below a sum's first one; block sums have 53
_MOST = 8  # digits of a window that was moved often
_ZERO = 30  # the first digit of a window of zeros: 2^-114 to 2^14, and more in the last digit


class Word(IntEnum):
    """The words of the header."""

    RANKS = 0  # one each
    CALL = 1  # which call of which plan this is, as two hashes that must be everyone's
    CALL_AGAIN = 2
    FAULTS = 3  # ranks that have an error of their own
    OUTSIDE = 4  # ranks with digits outside of the window
    LATE = 5  # ranks that others may have waited for until their limit
    REPLICAS = 6  # differences between replicas, modulo 2^64 as all words
    CHANGED = 7  # ranks that want other strengths than all know of
    CHANGED_TO = 8  # numbers that stand for these
    HEADER = 16  # how many words there are; the others are zero


def hash_of(data: bytes) -> int:
    """A number of 40 bits."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=5).digest(), "little")


class Call(NamedTuple):
    """What all ranks must be at."""

    digest: bytes
    step: int

    def words(self) -> tuple[int, int]:
        found = hashlib.blake2b(self.digest + b"%d" % self.step, digest_size=10).digest()
        return int.from_bytes(found[:5], "little"), int.from_bytes(found[5:], "little")


def header(call: Call, **words: int) -> NDArray[np.int64]:
    found = np.zeros(Word.HEADER, np.int64)
    found[Word.RANKS] = 1
    found[Word.CALL], found[Word.CALL_AGAIN] = call.words()
    for name, word in words.items():
        found[Word[name]] = (word + 2**63) % 2**64 - 2**63  # engines add modulo 2^64 too
    return found


def is_common(reduced: NDArray[np.int64], call: Call, ranks: int) -> bool:
    """True if all ranks were at this call, and the words are what they sent."""
    wanted = ranks * header(call)
    same = [Word.RANKS, Word.CALL, Word.CALL_AGAIN]
    zeros = reduced[Word.CHANGED_TO + 1 : Word.HEADER]
    return bool((reduced[same] == wanted[same]).all() and not zeros.any())


class Window:
    """Which limbs are sent, of n tensors' sums."""

    def __init__(self, first: NDArray[np.int64], end: NDArray[np.int64], ranks: int) -> None:
        self.first, self.end = first, end  # of the digits of each of 2n sums
        # So many bits of the digit above may a window's last word hold: 2^(32 + bits) of each rank
        # make less than 2^63.
        self._bits = max(30 - ranks.bit_length(), 0)
        widths = end - first
        starts = LIMBS * np.arange(len(first), dtype=np.int64) + first
        before = np.cumsum(widths) - widths
        self._index = np.repeat(starts - before, widths) + np.arange(widths.sum(), dtype=np.int64)
        # The digit above a window is added to the last one in it, as long as it is small.
        lasts, below_top = before + widths - 1, end < DIGITS
        self._lasts, self._above = lasts[below_top], (starts + widths)[below_top]

    @classmethod
    def around(cls, limbs: NDArray[np.int64], before: Window | None, ranks: int) -> Window:
        """That of all limbs that some rank had: carries have not moved in these sums."""
        used = limbs.reshape(-1, LIMBS)[:, :DIGITS] != 0
        some = used.any(axis=1)
        first = np.where(some, used.argmax(axis=1), _ZERO)
        end = np.where(some, DIGITS - used[:, ::-1].argmax(axis=1), _ZERO + WIDTH)
        first = np.maximum(np.minimum(first, end - WIDTH), 0)
        end = np.maximum(end, first + WIDTH)
        if before is not None:  # or the window would go to and fro
            low, high = np.minimum(first, before.first), np.maximum(end, before.end)
            near = high - low <= _MOST
            first, end = np.where(near, low, first), np.where(near, high, end)
        return cls(first, end, ranks)

    def pack(self, limbs: NDArray[np.int64]) -> tuple[NDArray[np.int64], bool]:
        """The words of canonical limbs, and whether these are all."""
        flat = limbs.reshape(-1)
        words, above = flat[self._index], flat[self._above]
        inside = np.count_nonzero(words) + np.count_nonzero(above)
        if (above >> self._bits).any() or inside != np.count_nonzero(flat):
            return words, False
        words[self._lasts] += above << 32
        return words, True

    def unpack(self, words: NDArray[np.int64]) -> NDArray[np.int64]:
        limbs = np.zeros(len(self.first) * LIMBS, np.int64)
        limbs[self._index] = words
        return limbs.reshape(-1, 2, LIMBS)
