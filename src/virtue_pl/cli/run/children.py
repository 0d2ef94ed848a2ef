"""The processes that Lightning starts for a machine's other devices, and what is done where one of them ends."""

from __future__ import annotations

import os
import time
from subprocess import Popen
from typing import Any

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

GRACE = 30.0
"""Seconds that this process has to end by itself, once another one has ended with an error or by a signal."""


class PatientObserver(_ChildProcessObserver):
    """A thread that ends all processes where one of them has ended badly, and they do not do so by themselves.

    Lightning's kills this process within five seconds, while it may still save a checkpoint, or say why it ends.

    Example:
        >>> observer = PatientObserver(main_pid=os.getpid(), child_processes=[])
        >>> observer.daemon
        True
    """

    def _run(self) -> bool:
        codes = [process.poll() for process in self._child_processes]
        if not any(codes):
            return all(code == 0 for code in codes)
        time.sleep(GRACE)
        self._terminate_all()
        return True


def watch_children(child_processes: list[Popen[Any]]) -> None:
    """Start the thread that watches the processes which this one has started."""
    PatientObserver(main_pid=os.getpid(), child_processes=child_processes).start()
