"""`fused_penalties.distributed` on gloo, with 1 to 4 ranks, against one process; and its faults."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launch import answers, check_pairs, torch_ranks

pytest.importorskip("torch", reason="not installed: torch")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {count: tmp_path_factory.mktemp(f"{count}-ranks") for count in (1, 2, 3, 4)}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_way_has_the_bits_of_one_process(folders: dict[int, Path], count: int) -> None:
    for ended in torch_ranks("torch_cases.py", count, folders[count]):
        assert ended.status == 0, ended.output
    check_pairs(folders[count], count)


# What each of three ranks is told, when the last one is at fault. Of some faults all know at once;
# of others only the rank where they are.
TOLD = {
    "shapes": r"ValueError: .*'w'.*shape is \(3, 4\) on rank 0 but \(3, 5\) on rank 2",
    "dtypes": r"ValueError: .*'w'.*dtype is float32 on rank 0 but float64 on rank 2",
    "gap": r"ValueError: .*'w'.*elements 20 to 29 are on no rank",
    "overlap": r"ValueError: .*'w'.*shards of ranks 0 and 1 overlap",
    "gap within rows": r"ValueError: .*'w'.*5 of its elements are on no rank",
    "overlap within rows": r"ValueError: .*'w'.*shards of ranks 0 and 1 overlap",
    "outside": r"RankError: rank 2: ValueError: .*'w'.*wanted one that lies within it",
    "strengths": r"ValueError: .*'w' has .* l2 = 0.5 on rank 0 but 0 and 0.25 on rank 2",
    "a rule for nothing": r"ValueError: regularizer\['v'\]: .* none of the 1 names",
    "a rule for nothing on one rank": r"RankError: rank 2: ValueError: regularizer\['v'\]",
    "a function": r"TypeError: regularizer: .* would need the whole tensor",
    "no array": r"RankError: rank 2: TypeError: .*'w'.*got list; wanted a torch tensor",
    "integers": r"TypeError: .*'w'.*int32 is not supported",
    "parts to be added up": r"ValueError: .*'w'.*still have to be added up",
    "a wrong limit": r"RankError: rank 2: ValueError: timeout: got -1.0",
    "a failing import": r"RankError: rank 2: ImportError: no such module",
    "shards that nobody declared": r"RankError: replicas differ: 'w' .* rank 1 than on rank 0",
    "shards that nobody declared, again": r"RankError: replicas differ: 'w'",
    "stages with one name": r"RankError: replicas differ: 'w' .* rank 1 than on rank 0",
    "replicas that drifted": r"RankError: replicas differ: 'w' .* rank 2 than on rank 0",
    "replicas that are equal again": r"no error but tensor\(502.5000\)",
    "an error of its own": r"RankError: rank 2: ValueError: grads: 'v' is none of the names",
    "grads of another dtype": r"RankError: rank 2: ValueError: grads\['w'\]: has the dtype float64",
    "grads of no dtype": r"TypeError: grads\['w'\]: .*int32 is not supported",
    "grads without names": r"TypeError: grads: got list; wanted a mapping of names to gradients:",
    "weights as gradients": r"ValueError: grads\['w'\]: is a tensor of the model itself",
    "what lies where weights do": r"ValueError: grads\['w'\]: is a tensor of the model itself",
    "parameters as gradients": r"ValueError: grads\['w'\]: is a tensor of the model itself",
    "weights as gradients on one rank": r"RankError: rank 2: ValueError: grads\['w'\]: is a tensor",
    "params of other shapes": r"ValueError: params\['w'\]: its shape is \(3,\) on rank 0 but",
    "an error of all": r"ValueError: max_norm: got -1.0",
    "no limit on one rank": r"RankError: rank 2: ValueError: max_norm: got nan",
    "another limit": r"RankError: .* not at the same call .* to 1.0, rank 2 .* to 2.0",
    "a limit on one rank": r"RankError: .* not at the same call .* of 1 tensors, clipped to 1.0$",
    "still as they were": "no error but 6000.0",
    "a second derivative": r"RuntimeError: .* not linear in the penalty .* parts of other ranks",
    "another dtype": r"RankError: rank 2: ValueError: 'w': has the dtype float64",
    "NaN": "no error but nan",
    "no NaN any more": "no error but 6000.0",
    "nothing on one rank": "no error but 4.0",
    "by name on one rank": r"RankError: .* not at the same call .* tensors, by name$",
    "the largest on one rank": r"RankError: .* same call .* tensors with the largest magnitudes$",
    "no flag on one rank": r"RankError: rank 2: TypeError: largest: got array",
    "NumPy's False on one rank": "no error but 6000.0",
    "the first strengths": "no error but 3000.0",
    "other strengths on one rank": r"ValueError: .*'w' has .* 0.5 on rank 0 but .* on rank 2",
    "other strengths on one rank, again": r"ValueError: .*'w' has .* on rank 0 but .* on rank 2",
    "sums beside": "no error but 6003.0",
    "the first strengths again": "no error but 3000.0",
    "other strengths on another rank": r"ValueError: .*'w' has .* 0.25 on rank 0 but .* on rank 1",
    "other strengths on all": "no error but 1500.75",
    "rules that one rank cannot read": "ValueError",
    "rules that one rank could not read": "no error but 1500.75",
    "strengths and NaN on one rank": r"ValueError: .*'w' has .* 0.25 on rank 0 but .* on rank 2",
    "strengths and NaN": "no error but nan",
    "nothing frozen": "no error but 6000.0",
    "frozen on one rank": r"ValueError: .*'b' has .* = 0.5 on rank 0 but 0 and 0 on rank 2",
    "frozen on all": "no error but 3000.0",
    "not frozen on one rank": r"ValueError: .*'b' has .* l2 = 0 on rank 0 but .* on rank 2",
    "frozen on all again": "no error but 3000.0",
    "another plan": r"RankError: ranks are not at the same call of the same plan",
    "another call": r"RankError: .* not at the same call .* 1 at call (\d+) .* 2 at call (?!\1 )",
    "together again": "no error but 6000.0",
    "another method": r"RankError: .* not at the same call .* sums of .*, rank 2 .* value of",
    "together again, sums": "no error but 6000.0",
    "together again, value": "no error but 3000.0",
    "a group of others": r"ValueError: group: this rank is not in it",
}


def test_faults_are_the_same_error_on_every_rank(tmp_path: Path) -> None:
    for ended in torch_ranks("torch_faults.py", 3, tmp_path, "faults"):
        assert ended.status == 0, ended.output
    first, *others = answers(tmp_path, 3)
    assert list(first) == list(TOLD)
    for name, text in first.items():
        assert re.match(TOLD[name], text), f"{name}: {text}"
        assert [other[name] for other in others] == [text, text]


def test_other_errors_of_an_engine_keep_their_text(tmp_path: Path) -> None:
    for ended in torch_ranks("torch_faults.py", 2, tmp_path, "failing"):
        assert ended.status == 0, ended.output
    for rank, found in enumerate(answers(tmp_path, 2)):
        wanted = f"RankError: rank {rank}: a collective failed: RuntimeError: out of memory"
        assert found["told"] == wanted


def test_the_penalty_of_a_model_that_changes(tmp_path: Path) -> None:
    for ended in torch_ranks("torch_penalty.py", 2, tmp_path):
        assert ended.status == 0, ended.output


@pytest.mark.parametrize(("which", "living"), [("late", 3), ("dead", 2)])
def test_a_rank_that_does_not_come_in_time(tmp_path: Path, which: str, living: int) -> None:
    """Also the late one itself is told, though all words were there when it came."""
    ended = torch_ranks("torch_faults.py", 3, tmp_path, which)
    assert [one.status for one in ended[:living]] == [0] * living, ended
    for one in answers(tmp_path, living):
        assert one["told"] == (
            "RankError: not all ranks took part in this call within its limit of 3 s: one is late, "
            "is gone, or raised an error before it"
        )
        assert one["seconds"] < 4.0
        # The group is given up: no call of any plan waits again, or ends the process.
        assert one["again"] == [one["told"]] * 3
        assert one["seconds in all"] < one["seconds"] + 1.0
