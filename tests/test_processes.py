"""What several processes tell each other, and that they end together, with one message."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from hybridprune import processes
from hybridprune.errors import Interrupted, RunFailed, UserError
from hybridprune.processes import (
    any_process,
    bytes_from_first,
    count,
    first_on_this_machine,
    is_first,
    is_own,
    json_from_first,
    local_device,
    rank,
)
from tests.process_groups import together

LONG = bytes(range(256)) * 1000


def test_items_are_taken_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(map(is_own, range(7)))
    monkeypatch.setattr(processes, "count", lambda: 3)
    owned = []
    for own in range(3):
        monkeypatch.setattr(processes, "rank", partial(int, own))
        owned.append([number for number in range(7) if is_own(number)])
    assert owned == [[0, 3, 6], [1, 4], [2, 5]]


def test_alone_nobody_is_asked() -> None:
    assert (rank(), count(), is_first()) == (0, 1, True)
    assert any_process(True) and not any_process(False)
    assert bytes_from_first(lambda: b"x") == b"x" and json_from_first(lambda: (1,)) == (1,)
    assert local_device(torch.device("cuda", 3)) == torch.device("cuda", 3)


def test_the_first_ones_words_and_anybodys_wish_reach_all(tmp_path: Path) -> None:
    def talk() -> object:
        own = rank()
        told = [bytes_from_first(partial([b"never", text][own == 0].__add__, b"")) for text in (b"", LONG)]
        record = json_from_first(lambda: {"rank": own, "pair": (1, None)})
        wishes = [any_process(own == chosen) for chosen in range(4)]
        with first_on_this_machine():
            time.sleep(0.1 if own == 0 else 0)
            seen = (tmp_path / "made").exists()
            (tmp_path / "made").touch()
        return own, count(), is_first(), told, record, wishes, seen

    for own, (code, found, *_) in enumerate(together(tmp_path, talk, 3)):
        assert code == 0
        record = {"rank": 0, "pair": [1, None]}
        assert found == (own, 3, own == 0, [b"", LONG], record, [True] * 3 + [False], own > 0)


def all_of_them(error: Exception) -> None:
    raise error


def one_while_others_wait(chosen: int) -> Callable[[Exception], None]:
    def fail(error: Exception) -> None:
        if rank() == chosen:
            time.sleep(0.1)
            raise error
        any_process(False)

    return fail


@pytest.mark.parametrize(
    ("fail", "error", "code", "message"),
    [
        (all_of_them, UserError("--lr: wrong"), 2, "error: --lr: wrong\n"),
        (one_while_others_wait(0), UserError("--lr: wrong"), 2, "error: --lr: wrong\n"),
        (one_while_others_wait(1), UserError("--lr: wrong"), 2, "error: --lr: wrong\n"),
        (one_while_others_wait(0), OSError("disk full"), 1, "failed: disk full\n"),
        (one_while_others_wait(1), RunFailed("not finite"), 1, "failed: not finite\n"),
        (all_of_them, Interrupted("saved"), 130, "\ninterrupted: saved\n"),
    ],
)
def test_all_end_with_the_first_failures_code_and_one_message(
    fail: Callable[[Exception], None], error: Exception, code: int, message: str, tmp_path: Path
) -> None:
    ended = together(tmp_path, lambda: fail(error))
    assert [each[0] for each in ended] == [code, code]
    assert sorted(each[3] for each in ended) == ["", message]


@pytest.mark.full
def test_a_process_that_dies_without_a_word(tmp_path: Path) -> None:
    def wait_or_die() -> None:
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        any_process(False)

    code, _, out, err = together(tmp_path, wait_or_die, survivors=(0,))[0]
    assert (code, out) == (1, "")
    assert err == "failed: another process of this run has died; give the same command with --resume to go on\n"


def test_a_mistake_of_ours_shows_where_it_is_once(tmp_path: Path) -> None:
    ended = together(tmp_path, lambda: one_while_others_wait(1)(ZeroDivisionError("x")))
    assert [each[0] for each in ended] == [1, 1]
    assert ended[0][3] == "" and "in fail" in ended[1][3] and "ZeroDivisionError: x" in ended[1][3]


def test_a_gpu_for_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def place() -> object:
        assert local_device(torch.device("cpu")) == torch.device("cpu")
        if rank() == 1:
            return str(local_device(torch.device("cuda")))
        found = local_device(torch.device("cuda", 7))
        assert chosen == [0] == [found.index]
        return any_process(False)

    ended = together(tmp_path, place)
    assert [each[0] for each in ended] == [2, 2]
    assert "has 1 GPUs" in ended[1][3] and "--nproc-per-node" in ended[1][3] and ended[0][3] == ""
