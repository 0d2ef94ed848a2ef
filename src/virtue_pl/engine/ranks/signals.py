"""Signals that end or requeue a training: noted when they come, and acted on by all ranks after the same step.

Lightning's own handler communicates from inside the signal, wherever a rank then is, and hangs where ranks wait for
each other in another order. This one sets a flag. At the end of each step the ranks merge their flags.
"""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from virtue_pl.engine.ranks.collectives import merge_flags

STOP, REQUEUE = 0, 1
"""Places of the flags: SIGTERM came; SLURM's signal came, by default SIGUSR1."""


class StopSignals(_SignalConnector):
    """The handlers of a trainer's signals, which only set flags.

    A flag that any rank has set is known to all of them after the step that is under way, so that they save the same
    step, and stop. Outside of a training there is no such step, and each rank goes by its own flag.

    Example:
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> follow_signals(trainer)
        >>> trainer.received_sigterm
        False
    """

    def __init__(self, trainer: Trainer) -> None:
        self.asked = [False, False]
        self.agreed = False
        self.requeue_signal = 0
        super().__init__(trainer)

    @property
    def received_sigterm(self) -> bool:
        """Return whether Lightning's loops are to stop.

        A validation that is under way or due is finished first: ranks have different numbers of its batches, and where
        it is broken off, nobody makes up for it.
        """
        if self.trainer.state.fn != TrainerFn.FITTING:
            return self.asked[STOP]
        return self.agreed and not (self.trainer.validating or self.trainer.sanity_checking)

    @received_sigterm.setter
    def received_sigterm(self, value: bool) -> None:
        self.asked[STOP] = self.agreed = value

    def _sigterm_notifier_fn(self, signum: Any, _: Any) -> None:
        """Set the flag, and pass the first signal on to the processes that this one has started."""
        launcher = self.trainer.strategy.launcher
        if not self.asked[STOP] and launcher is not None:
            launcher.kill(signum)
        self.asked[STOP] = True

    def _sigterm_handler_fn(self, signum: Any, _: Any) -> None:
        """Do nothing more, under SLURM, either."""

    def _slurm_sigusr_handler_fn(self, signum: Any, _: Any) -> None:
        self.requeue_signal, self.asked[REQUEUE] = signum, True

    def merge(self) -> bool:
        """Merge the ranks' flags; returns whether the job is to be requeued now. Every rank must call it.

        A signal that comes meanwhile, as one does to a rank that waits here for the others, counts at the next step.
        """
        sent = list(self.asked)
        self.asked[REQUEUE] = False
        stop, requeue = merge_flags(sent)
        self.agreed = self.agreed or stop
        return requeue

    def requeue(self) -> None:
        """Save a checkpoint, and ask SLURM to start the job anew, as Lightning does."""
        super()._slurm_sigusr_handler_fn(self.requeue_signal, None)  # type: ignore[arg-type]


class SignalledLoop(_TrainingEpochLoop):
    """Lightning's loop over an epoch's batches, in which ranks merge their flags at the end of each step.

    Example:
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, max_steps=5)
        >>> follow_signals(trainer)
        >>> trainer.fit_loop.epoch_loop.max_steps
        5
    """

    def on_advance_end(self, data_fetcher: Any) -> None:
        signals: Any = self.trainer._signal_connector
        requeue = signals.merge()
        # A validation that is due runs in here, and then SIGTERMException is raised: nothing of it is lost. To stop
        # before it, raise here, and say in the checkpoint that it is due.
        try:
            super().on_advance_end(data_fetcher)
        except SIGTERMException:
            if requeue:
                signals.requeue()
            raise
        if requeue:
            signals.requeue()

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing: Lightning sends rank 0's flag to all before each step, and reads it back from the device."""


def follow_signals(trainer: Trainer) -> None:
    """Let a trainer stop, or be requeued, by signals to any of its ranks (`StopSignals`)."""
    before = trainer.fit_loop.epoch_loop
    trainer._signal_connector = StopSignals(trainer)
    trainer.fit_loop.epoch_loop = SignalledLoop(trainer, before.min_steps, before.max_steps)
