"""Options of a session on Ray, declared once: commands make their own of them. Nothing here imports Ray."""

from __future__ import annotations

from dataclasses import dataclass

from virtue_pl.types import VirtueError

PREFIX = "ray-"
"""Stands before the names of these options on the command line."""


@dataclass(frozen=True)
class RayOptions:
    """Options of a session on Ray: the cluster, and the actors that hold the model.

    Raises VirtueError for numbers that no actor can have.

    Example:
        >>> RayOptions(address="10.0.0.1:6379", gpus=0.5).cpus
        1.0
    """

    address: str | None = None
    """HOST:PORT of a running cluster, or auto for the one that this machine belongs to; by default RAY_ADDRESS, or else
    a Ray of this machine alone, as long as the command runs
    """
    actors: int | None = None
    """most actors at a time, each with a model of its own; by default as many as there is room for"""
    cpus: float = 1.0
    """CPUs of an actor"""
    gpus: float | None = None
    """GPUs of an actor, or the share of one; by default 1 where the cluster has any"""

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise VirtueError(f"--{PREFIX}actors is {self.actors}, expected at least 1")
        if self.cpus <= 0 or (self.gpus is not None and self.gpus < 0):
            gpus = "" if self.gpus is None else f", --{PREFIX}gpus {self.gpus:g}"
            raise VirtueError(f"--{PREFIX}cpus is {self.cpus:g}{gpus}, expected more than 0, and at least 0")
