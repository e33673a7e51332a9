"""Interrupts that meet code which lets no exception through."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from pipelines.signals import Interrupts, terminable


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_that_is_lost_is_raised_again(number: signal.Signals) -> None:
    before, interrupts = signal.getsignal(number), Interrupts()
    with terminable(interrupts):
        interrupts.check()
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 0.1)  # the handler runs before this returns
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert signal.getsignal(number) is before
