"""A case's runs beside the whole one: each rank's keys, losses, validations and last weights."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fixtures.rank_processes import started
from resume.cases import SAVING, STEPS, STOPS, Case
from resume.training import EXCEPTION, SIGTERM, train

SECONDS = 120
"""After which a run hangs."""
CODES = {"SIGTERM": SIGTERM, "kill -9": -signal.SIGKILL, "finished": 0}


def checkpoint_of(end: str, step: int) -> str:
    """Return the name of the checkpoint that a run goes on from which ended behind a step."""
    if end in ("SIGTERM", "finished"):
        return "last.ckpt"
    return f"step={step // SAVING * SAVING if end == 'kill -9' else step}.ckpt"


def run_once(case: Case, shards: Path, folder: Path, notes: str, step: int, start: str | None, saves: bool) -> str:
    """Run all ranks of a case once; returns what went wrong, "" where nothing did."""
    expected = 0 if step == STEPS else CODES.get(case.end, EXCEPTION)
    with started(folder / notes, train, case, shards, folder, notes, step, start, saves, number=case.ranks) as ranks:
        codes = ranks.wait(SECONDS)
        if codes == [expected] * case.ranks:
            return ""
        printed = [(ranks.printed(rank).strip().splitlines() or [""])[-1][:200] for rank in range(case.ranks)]
    how = "hangs" if None in codes else f"exit codes {codes}, expected {expected}"
    return f"{notes}: {how}: {' | '.join(printed)}"


def read_notes(folder: Path, notes: str, rank: int) -> list[dict[str, Any]]:
    """Return what a rank wrote down."""
    path = folder / f"{notes}.rank{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def whole_run(case: Case, shards: Path, folder: Path) -> str:
    """Run what a case is compared with, once for all cases of its kind; returns what went wrong."""
    if (folder / "whole").is_dir() and all(read_notes(folder, "whole", rank)[-1:] for rank in range(case.ranks)):
        return ""
    return run_once(replace(case, workers=0, end="finished"), shards, folder, "whole", STEPS, None, False)


def run_case(case: Case, shards: Path, whole: Path, folder: Path) -> dict[str, Any]:
    """Run a case; returns its problem ("" for none) and its seconds.

    Args:
        case: what is run.
        shards: of `write_shards`.
        whole: folder of the whole run, made if it is not there.
        folder: of the case, empty.
    """
    before = time.monotonic()
    problem = whole_run(case, shards, whole)
    start, names = None, []
    for number, step in enumerate([*STOPS[case.end], STEPS]):
        if problem:
            break
        names.append(f"run{number}")
        problem = run_once(case, shards, folder, names[-1], step, start, step != STEPS)
        start = checkpoint_of(case.end, step)
    for rank in range(case.ranks):
        problem = problem or compare(read_notes(whole, "whole", rank), [read_notes(folder, n, rank) for n in names])
    return {**vars(case), "problem": problem, "seconds": round(time.monotonic() - before, 1)}


def identify(note: dict[str, Any]) -> tuple[str, Any]:
    """Return what a note is of: a step, a validation behind one, or the last weights."""
    kind = next(name for name in ("step", "validation", "weights") if name in note)
    return kind, note[kind] if kind != "weights" else STEPS


def compare(whole: list[dict[str, Any]], runs: list[list[dict[str, Any]]]) -> str:
    """Return the first thing that the runs did otherwise than the whole one; "" where there is none."""
    expected = {identify(note): note for note in whole}
    if len(expected) < STEPS + 2:
        return f"the whole run noted {len(expected)} things"
    for number, notes in enumerate(runs):
        for note in notes:
            of = identify(note)
            if of not in expected:
                return f"run{number}: {of[0]} {of[1]} is not in the whole run"
            for name, value in note.items():
                if expected[of].get(name) != value:
                    return f"run{number}: {of[0]} {of[1]}: {name} is {value}, in the whole run {expected[of].get(name)}"
    missing = [f"{kind} {step}" for kind, step in expected.keys() - {identify(note) for run in runs for note in run}]
    return f"nobody came to {', '.join(sorted(missing))}" if missing else ""
