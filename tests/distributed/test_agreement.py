"""Who sums what, and which words are sent: many ranks in one process, without an engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fused_penalties as fp
from fused_penalties.distributed import Shard
from fused_penalties.distributed._agreement import Agreement, agree
from fused_penalties.distributed._engine import GREETING, Past, RankError, check_greetings
from fused_penalties.distributed._local import LocalSums
from fused_penalties.distributed._shards import layout_of
from fused_penalties.distributed._wire import Call, Window, Word, header, is_common


def agreements(held: list[dict[str, Any]]) -> list[Agreement]:
    tables = [[layout_of(name, one) for name, one in mine.items()] for mine in held]
    return [agree(rank, tables) for rank in range(len(held))]


def limbs_of(held: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[Any]]:
    """The limbs that each of these ranks would give to the all-reduce."""
    agreed = agreements(held)
    names = agreed[0].names
    ranks = [LocalSums(one, range(len(names))) for one in agreed]
    for mine, rank in zip(held, ranks, strict=True):
        rank.take({names.index(name): one.array for name, one in mine.items()})
    sent = [np.split(one.to_send(), np.cumsum(one.sent_bytes)[:-1]) for one in ranks]
    found = []
    for at, rank in enumerate(ranks):
        received = [parts[at] for parts in sent]
        assert [len(part) for part in received] == rank.received_bytes
        assert all(len(part) < 8192 * len(names) for part in received)
        found.append(rank.add_assembled(rank.limbs(), np.concatenate(received)))
    return names, found


@st.composite
def spread(draw: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Arrays, and what each of many ranks holds: any cuts, owners in any order, replicas."""
    ranks = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kept, held = {}, [{} for _ in range(ranks)]
    for name, dtype in ("a", np.float32), ("b", np.float64), ("c", np.float16):
        rows, columns = (int(10 ** rng.uniform(0, 2.3)) for _ in range(2))
        kept[name] = rng.standard_normal((rows, columns)).astype(dtype)
        count = int(rng.integers(1, ranks + 1))
        cuts = [0, *sorted(rng.integers(0, rows + 1, count - 1)), rows]
        places = [*range(count), *rng.integers(0, count, ranks - count)]
        for rank, at in enumerate(rng.permutation(places)):
            part = slice(int(cuts[at]), int(cuts[at + 1]))
            held[rank][name] = Shard(kept[name][part], (rows, columns), (part.start, 0))
    return kept, held


@given(spread())
def test_any_cuts_have_the_limbs_of_the_whole(case: tuple[Any, list[dict[str, Any]]]) -> None:
    kept, held = case
    names, limbs = limbs_of(held)
    found = fp.PartialSums(sum(limbs)).limbs
    assert (found == fp.partial_sums({name: kept[name] for name in names}).limbs).all()
    for one in limbs:
        assert (fp.PartialSums(one).limbs == one).all()  # canonical, as what is sent has to be


def test_all_ranks_agree() -> None:
    whole = np.ones((300, 7))
    held = [{"w": Shard(whole[k::3], (300, 7), (100 * k, 0))} for k in range(3)]
    first, *others = agreements(held)
    for other in others:
        assert (other.names, other.digest, other.spread) == (
            first.names,
            first.digest,
            first.spread,
        )
    assert first.inexact == ()
    lowest, *others = agreements([{"w": whole}] * 3)  # replicas, of which one sums
    assert len(lowest.pieces) == 1
    assert not any(other.pieces or other.parts.blocks for other in others)
    assert agreements([*held, {}])[0].digest != first.digest


def test_a_step_that_others_are_not_at_is_seen() -> None:
    """Also by the rank whose step is the mean of all."""
    for steps, wanted in ((4, 5, 6), False), ((5, 5, 5), True):
        calls = [Call(b"a plan", step) for step in steps]
        reduced = sum(header(call) for call in calls)
        assert [is_common(reduced, call, 3) for call in calls] == [wanted] * 3


def test_strange_greetings_are_the_same_error_everywhere() -> None:
    """Each rank may see others of them."""
    assert check_greetings(np.array([[GREETING, 3], [GREETING, 5]]), Past()) == [3, 5]
    texts = []
    for seen in [[GREETING, 3], [7, 5]], [[1, 3], [GREETING, 5]]:
        with pytest.raises(RankError, match="not at the same call") as caught:
            check_greetings(np.array(seen), Past())
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


def test_replicas_cancel_modulo_the_words() -> None:
    """The digests of so many ranks' replicas add up to more than a word has room for."""
    digest, ranks = 2**40 - 1, 2**25
    owner = header(Call(b"", 1), REPLICAS=digest * (ranks - 1))
    others = np.int64(ranks - 1) * header(Call(b"", 1), REPLICAS=-digest)
    assert (owner + others)[Word.REPLICAS] == 0
    assert (owner + others + header(Call(b"", 1), REPLICAS=1))[Word.REPLICAS] == 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 1000])
def test_a_window_has_room_for_all_ranks(ranks: int) -> None:
    """Words that are as large as they may be, on every rank, add up to no overflow."""
    rng = np.random.default_rng(ranks)
    limbs = fp.partial_sums([rng.standard_normal(3000) * 10.0**power for power in range(-90, 90)])
    window = Window.around(limbs.limbs, None, ranks)
    high = 1
    while True:
        one = limbs.limbs.copy()
        for row, end in zip(one.reshape(-1, one.shape[-1]), window.end, strict=True):
            row[end - 1] = 2**32 - 1
            row[end] = high
        words, inside = window.pack(one)
        if not inside:
            break
        reduced = sum(words.copy() for _ in range(ranks))
        found = fp.PartialSums(window.unpack(reduced)).limbs
        assert (found == fp.PartialSums(ranks * one).limbs).all()
        high = 2 * high + 1
    assert high >= 2**10  # so sums may grow a thousandfold


def test_what_is_outside_of_a_window_is_seen() -> None:
    limbs = fp.partial_sums([np.full(100, 1.5), np.zeros(5)]).limbs
    window = Window.around(limbs, None, 2)
    assert window.pack(limbs)[1]
    assert not limbs[:, :, 68:].any()
    for row in range(2):
        for at in range(70):
            other = limbs.copy()
            other[row, 0, at] += 1
            words, inside = window.pack(other)
            same = fp.PartialSums(window.unpack(words)).limbs
            assert inside == bool((same == fp.PartialSums(other).limbs).all())
            assert at < 68 or not inside
