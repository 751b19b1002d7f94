"""Ctrl-C and SIGTERM wait for the loop once, and not twice."""

from __future__ import annotations

import signal
import threading

import pytest

from hybridprune.engine.interrupt import deferred_interrupt
from hybridprune.errors import signal_of

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_first_signal_is_a_request_and_the_second_interrupts(first: int, second: int) -> None:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    with pytest.raises(KeyboardInterrupt) as raised, deferred_interrupt() as requested:
        assert requested() == 0
        signal.raise_signal(first)
        assert requested() == first
        signal.raise_signal(second)
    assert signal_of(raised.value) == second
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_the_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_nothing_is_installed() -> None:
    seen: list[bool] = []
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with deferred_interrupt() as interrupted:
            seen.append(interrupted() > 0 or signal.getsignal(signal.SIGINT) is not before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]
