"""Stages done once, and runs that are fitted and tested once and go on where they were stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from virtue_pl.evaluation.reports.report_files import write_json, write_text
from virtue_pl.pipelines.plan import Run, file_hash
from virtue_pl.pipelines.time_left import TimeLeft, describe_seconds
from virtue_pl.types import VirtueError
from virtue_pl.types.fingerprints import FORMAT, LIBRARIES, hash_values, library_versions

Command = Callable[[list[str]], int]
STAGE_LIBRARIES = (*LIBRARIES, "lightning", "numpy")
"""Libraries that change what a stage leaves: those of embeddings, the trainer, and what draws scenes."""


class Stages:
    """Stages that are done once.

    `stages.json` holds their seconds, a fingerprint of their inputs and versions, and a hash of their result. A later
    call reuses a stage where all of these are the same.

    Example:
        >>> stages = Stages(Path("runs/study"), Console())  # doctest: +SKIP
        >>> stages.run("scenes", [seed], Path("data/scenes.json"), lambda fingerprint: write_scenes())
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self.path = folder / "stages.json"
        self.console = console
        self.done: dict[str, dict[str, Any]] = (
            json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        )
        self.number = 0
        self.expected: list[str] = []
        self.time_left = TimeLeft()

    def expect(self, names: Sequence[str], typical: Mapping[str, float] | None = None) -> None:
        """Say which stages are to be run, in order, so that each can say how many there are and how long they take.

        typical: seconds that they take on some machine, see `TimeLeft`.
        """
        self.expected = list(names)
        self.time_left = TimeLeft(self.seconds(), typical)

    def heading(self, name: str) -> str:
        """Return a stage's title: its number of how many, its name, and the time left where there is an estimate."""
        if name not in self.expected:
            return f"{self.number}. {name}"
        index = self.expected.index(name)
        # behind a stage that is done again all are; behind a new one those that were done are passed over in a moment
        again = name in self.done
        seconds = self.time_left.seconds([each for each in self.expected[index:] if again or each not in self.done])
        left = "" if seconds is None else f" · {describe_seconds(seconds)} left"
        return f"{index + 1} of {len(self.expected)} stages: {name}{left}"

    def run(
        self,
        name: str,
        made_from: Sequence[Any],
        result: Path,
        work: Callable[[str], None],
        products: Sequence[Path] = (),
    ) -> str:
        """Run `work`, which must leave `result`, unless it was run with the same inputs and left the same.

        Args:
            name: of the stage.
            made_from: all that the result depends on, as plain values; versions of libraries are added.
            result: the last file that the stage writes.
            work: called with the fingerprint of the inputs.
            products: folders that the stage writes; those that an earlier call wrote from other inputs are removed.

        Returns the fingerprint.
        """
        self.number += 1
        fingerprint = hash_values(FORMAT, library_versions(STAGE_LIBRARIES), list(made_from))[:16]
        if self.is_done(name, fingerprint, result):
            self.console.print(f"[dim]{self.number}. {name}: done before, {result}[/dim]")
            self.time_left.add(name, self.done[name]["seconds"])
            return fingerprint
        self.console.rule(self.heading(name))
        if name in self.done:
            self.console.print(f"[dim]{name} was done with other inputs, settings or versions: it is done again[/dim]")
            self.remove(name, result, products)
        started = time.perf_counter()
        work(fingerprint)
        if not result.exists():
            raise VirtueError(f"{name} ended without {result}")
        seconds = round(time.perf_counter() - started, 1)
        self.done[name] = {"fingerprint": fingerprint, "seconds": seconds, "result": file_hash(result)}
        self.done[name] |= {"path": str(result.resolve())}
        write_json(self.path, self.done)
        self.time_left.add(name, seconds)
        return fingerprint

    def remove(self, name: str, result: Path, products: Sequence[Path]) -> None:
        """Remove what an earlier call of a stage wrote, if it was written here."""
        if self.done[name].get("path") == str(result.resolve()):
            for folder in products:
                shutil.rmtree(folder, ignore_errors=True)

    def is_done(self, name: str, fingerprint: str, result: Path) -> bool:
        """Return whether a stage was run with inputs of this fingerprint, and its result is still what it left."""
        done = self.done.get(name, {})
        return done.get("fingerprint") == fingerprint and result.is_file() and done.get("result") == file_hash(result)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage."""
        return {name: stage["seconds"] for name, stage in self.done.items()}


class Runs:
    """Runs that are fitted and tested, each in its own folder.

    Args:
        out: folder of the runs.
        lightning: runs `fit` or `test` with their arguments.

    Example:
        >>> runs = Runs(Path("runs/study"), lightning.main, Console())  # doctest: +SKIP
        >>> runs.fit_run("virtue", run, shared={}, made_from=[], options=[])
    """

    def __init__(self, out: Path, lightning: Command, console: Console) -> None:
        self.out = out
        self.lightning = lightning
        self.console = console
        out.mkdir(parents=True, exist_ok=True)
        self.stages = Stages(out, console)

    def checkpoint(self, name: str) -> Path:
        """Return the path of a run's last checkpoint."""
        return self.out / name / "checkpoints" / "last.ckpt"

    def fit_run(
        self, name: str, run: Run, shared: Mapping[str, Any], made_from: Sequence[Any], options: Sequence[str]
    ) -> str:
        """Train the run `name`, if it was not.

        Returns the fingerprint of what it is made from. options: more arguments.
        """
        arguments = [*run.arguments({"run": str(self.out / name), **shared}), *options]
        return self.stages.run(
            f"fit {name}",
            [*made_from, run.content(), list(options)],
            self.checkpoint(name),
            lambda fingerprint: self.train(name, arguments, fingerprint),
        )

    def train(self, name: str, arguments: list[str], fingerprint: str) -> None:
        """Train a run, or go on with one of the same fingerprint that was stopped.

        It goes on from the last checkpoint; any other run begins in an empty folder.
        """
        folder = self.out / name
        begun, checkpoint = folder / "fingerprint", self.checkpoint(name)
        if begun.is_file() and begun.read_text(encoding="utf-8") == fingerprint and checkpoint.is_file():
            return self.command("fit", [*arguments, f"--ckpt_path={checkpoint}"])
        shutil.rmtree(folder, ignore_errors=True)
        write_text(begun, fingerprint)
        self.command("fit", arguments)

    def test_run(
        self, name: str, run: Run, shared: Mapping[str, Any], made_from: Sequence[Any], options: Sequence[str]
    ) -> None:
        """Test what was trained, if it was not."""
        arguments = [
            *run.arguments({"run": str(self.out / name), **shared}),
            *options,
            f"--ckpt_path={self.checkpoint(name)}",
        ]
        self.stages.run(
            f"test {name}",
            [*made_from, run.content(), list(options)],
            self.out / name / "report.json",
            lambda _: self.command("test", arguments),
        )

    def features_run(
        self, run: Run, shared: Mapping[str, Any], made_from: Sequence[Any], result: Path, options: Sequence[str]
    ) -> str:
        """Store each image's frozen features beside the shards.

        result: the last file that it writes, SHARDS/NAME/FOLDER/features.json. Returns the fingerprint.
        """
        arguments = [*run.arguments({"run": str(self.out / "features"), **shared}), *options]
        return self.stages.run(
            result.parent.name,
            [*made_from, run.content(), list(options)],
            result,
            lambda _: self.command("predict", arguments),
            products=sorted(result.parents[1].parent.glob(f"*/{result.parent.name}")),
        )

    def report_of(self, name: str) -> dict[str, Any]:
        """Read the report of the run's test."""
        found: dict[str, Any] = json.loads((self.out / name / "report.json").read_text(encoding="utf-8"))
        return found

    def command(self, name: str, arguments: list[str]) -> None:
        """Run a command of Lightning's. Raises VirtueError where it fails."""
        self.console.print(f"[dim]lightning {name} {' '.join(arguments)}[/dim]", soft_wrap=True, highlight=False)
        code = self.lightning([name, *arguments])
        if code:
            raise VirtueError(f"lightning {name} ended with exit code {code}")
