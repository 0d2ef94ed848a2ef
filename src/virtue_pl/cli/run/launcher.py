"""The program that started this process among others, torchrun or SLURM's srun, and how many of them there are."""

from __future__ import annotations

import os
from dataclasses import dataclass

from virtue_pl.types import VirtueError


@dataclass(frozen=True)
class Launcher:
    """A program that has started the processes of a run.

    Example:
        >>> Launcher("torchrun", nodes=2, processes=4).describe()
        'torchrun has started 8 processes, 4 on each of 2 nodes'
    """

    name: str
    nodes: int
    processes: int
    """Number of processes on each node."""

    def describe(self) -> str:
        """Return what was started, in words."""
        total = self.nodes * self.processes
        nodes = f", {self.processes} on each of {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self.name} has started {total} process{'es' * (total > 1)}{nodes}"

    def check(self, devices: int, nodes: int) -> None:
        """Raise VirtueError where the trainer is given other processes than were started: each would train alone."""
        if (devices, nodes) != (self.processes, self.nodes):
            raise VirtueError(
                f"trainer.devices is {devices} and trainer.num_nodes {nodes}, but {self.describe()}: leave both out"
                f" (devices: launcher), or set devices to {self.processes} and num_nodes to {self.nodes}"
            )


def find_launcher() -> Launcher | None:
    """Return the launcher that the environment speaks of; None where this process started alone.

    Raises VirtueError where nodes have different numbers of processes, or SLURM does not say how many each has.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        total, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        return divide("torchrun", total, int(os.environ.get("GROUP_WORLD_SIZE", total // local)), local)
    if is_srun():
        total, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
        if total > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:  # which Lightning wants
            raise VirtueError(
                f"srun has started {total} processes by --ntasks, expected --ntasks-per-node: give srun or sbatch"
                f" --nodes {nodes} --ntasks-per-node {total // nodes}"
            )
        return divide("srun", total, nodes, int(os.environ.get("SLURM_NTASKS_PER_NODE", total // nodes)))
    return None


def is_srun() -> bool:
    """Return whether SLURM's srun has started this process; not where it opened a shell, as Lightning sees it."""
    from lightning.fabric.plugins.environments.slurm import _is_srun_used

    return "SLURM_PROCID" in os.environ and _is_srun_used()


def divide(name: str, total: int, nodes: int, processes: int) -> Launcher:
    """Return the launcher of `total` processes. Raises VirtueError where they are not `processes` on each node."""
    if nodes * processes != total:
        raise VirtueError(
            f"{name} has started {total} processes on {nodes} nodes, expected as many on each: give every node the same"
            " number"
        )
    return Launcher(name, nodes, processes)
