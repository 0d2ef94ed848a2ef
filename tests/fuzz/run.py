"""Fuzz the readers of files with atheris: a process for each target, a minute in all (`make fuzz`).

`run.py [--seconds N] [TARGET ...]`; an input that breaks a reader stays in runs/fuzz/TARGET/ and is named.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

OUT = Path("runs/fuzz")
NAMES = ("images", "masks", "tars", "parquet", "json_lines")
MEMORY_MB = 4096
SECONDS_PER_INPUT = 10


def main() -> int:
    """Fuzz every target that is named, or all; returns 1 where one was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=60, help="in all (default 60)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    targets = arguments.targets or list(NAMES)
    if arguments.inside:
        fuzz(targets[0], arguments.seconds)
    command = [sys.executable, __file__, "--inside", "--seconds", str(max(1, arguments.seconds // len(targets)))]
    broken = [target for target in targets if subprocess.run([*command, target], check=False).returncode]
    print(f"broken: {', '.join(broken)}; their inputs are in {OUT}" if broken else "no reader was broken")
    return int(bool(broken))


def fuzz(target: str, seconds: int) -> None:
    """Fuzz one target; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["virtue_pl.data", "virtue_pl.preprocessing", "PIL"]):
        from fuzz.targets import TARGETS
    check, seeds = TARGETS[target]
    folder = OUT / target
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (folder / f"corpus/seed-{number}").write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-rss_limit_mb={MEMORY_MB}", f"-timeout={SECONDS_PER_INPUT}"]
    quiet = ["-verbosity=0", "-max_len=20000", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], str(folder / "corpus"), *limits, *quiet], check)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
