"""Resume runs that were stopped, and compare them with the same runs left alone (`make test-resume`).

`run.py [--all] [NAME ...]`: a covering set of the cases, in which every pair of two factors' values is; `--all` for
each case; NAMEs for those with one of these words in their names. Cases that passed stay passed: `--again` runs
them, too. The results are in runs/resume/results.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fixtures.rank_processes import run_ranks
from resume.cases import DATA, ENCODING, FACTORS, RANKS, SEED, WORKERS, Case, all_cases, covering_cases
from resume.compare import run_case
from resume.training import write_shards

OUT = Path("runs/resume")


def main() -> int:
    """Run the cases that are asked for; returns 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="words of which a case's name has one")
    parser.add_argument("--all", action="store_true", help="every case")
    parser.add_argument("--again", action="store_true", help="those that passed before, too")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the covering set (default {SEED})")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = all_cases() if arguments.all or arguments.names else covering_cases(arguments.seed)
    cases = [case for case in cases if not arguments.names or any(word in case.name for word in arguments.names)]
    print(f"{len(cases)} of {len(all_cases())} cases" + ("" if arguments.all else f", seed {arguments.seed}"))
    results = read_results()
    if arguments.again:
        results = {name: found for name, found in results.items() if name not in {case.name for case in cases}}
        shutil.rmtree(OUT / "whole", ignore_errors=True)
    run_cases([case for case in cases if results.get(case.name, {"problem": "none yet"})["problem"]], results)
    found = {case.name: results[case.name] for case in cases}
    print(table(found))
    failed = [name for name, result in found.items() if result["problem"]]
    print(f"{len(found) - len(failed)} of {len(found)} equal to the whole run; {OUT / 'results.json'}")
    return int(bool(failed))


def read_results() -> dict[str, dict[str, Any]]:
    """Return the results of earlier calls, by the cases' names."""
    path = OUT / "results.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def run_cases(cases: list[Case], results: dict[str, dict[str, Any]]) -> None:
    """Run cases, say how each went and how long the rest will take, and add them to the results."""
    shards = OUT / "shards"
    shutil.rmtree(shards, ignore_errors=True)
    shutil.rmtree(OUT / "case", ignore_errors=True)
    run_ranks(OUT / "case", write_shards, shards.resolve(), number=1)
    before = time.monotonic()
    for number, case in enumerate(cases, 1):
        folder = OUT / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        whole = OUT / "whole" / " ".join(map(str, case.whole))
        result = run_case(case, shards.resolve(), whole.resolve(), folder.resolve())
        results[case.name] = result
        (OUT / "results.json").write_text(json.dumps(results, indent=1))
        left = (time.monotonic() - before) / number * (len(cases) - number)
        how = "equal" if not result["problem"] else result["problem"]
        print(
            f"{number}/{len(cases)}, {left / 60:.0f} min left: {case.name}: {how} ({result['seconds']} s)", flush=True
        )


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return how many cases of each end were equal, by the values of the other factors."""
    columns = [("workers", WORKERS), ("ranks", RANKS), ("data", DATA), ("encoding", ENCODING)]
    header = [
        "",
        *(str(value) if name in ("data", "encoding") else f"{name} {value}" for name, of in columns for value in of),
    ]
    lines = [header]
    for end in dict(FACTORS)["end"]:
        lines.append([end])
        for name, values in columns:
            for value in values:
                found = [each for each in results.values() if each["end"] == end and each[name] == value]
                equal = sum(not each["problem"] for each in found)
                lines[-1].append(f"{equal}/{len(found)}" if found else "-")
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


if __name__ == "__main__":
    sys.exit(main())
