"""What a prompt is worth, in a sentence, from a test's own numbers."""

from __future__ import annotations

import json
from pathlib import Path

from virtue_pl.evaluation.retrieval.predictions import read_predictions
from virtue_pl.evaluation.statistics.summary import summarise
from virtue_pl.pipelines.prompt_worth import describe_worth, prompt_worth


def write_predictions(path: Path, right: dict[str, int], queries: int = 40) -> Path:
    """Queries of ten candidates each, the first ones of each mode right."""
    lines = [
        {
            "task": "scar_mini/test_seen",
            "key": f"k{number}",
            "mode": mode,
            "image": f"i{number // 2}",
            "ranks": {"hit@1": [0 if number < count else 3, 10]},
        }
        for mode, count in right.items()
        for number in range(queries)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def sentence_of(path: Path) -> str:
    found = prompt_worth(path, summarise(read_predictions(path)))
    return describe_worth(found, {"test_seen": {"hit@1": 0.1}})


def test_a_sentence_has_both_shares_and_their_paired_difference(tmp_path: Path) -> None:
    text = sentence_of(write_predictions(tmp_path / "p.jsonl", {"box": 32, "point": 30, "no_prompt": 12}))
    assert text.startswith("On seen objects, with a box the right caption among 10 comes first for 80.0 ± ")
    assert " % of the queries, without a prompt for 30.0 ± " in text
    assert "the prompt is worth +50.0 points, 95 % interval +" in text and "nothing" not in text
    assert text.endswith("± is the standard error over queries, of one training.")


def test_a_difference_within_its_interval_may_be_nothing(tmp_path: Path) -> None:
    text = sentence_of(write_predictions(tmp_path / "p.jsonl", {"point": 13, "no_prompt": 12}))
    assert "with a click" in text and "+2.5 points" in text and "which may be nothing" in text


def test_without_a_mode_to_compare_to_nothing_is_said(tmp_path: Path) -> None:
    assert sentence_of(write_predictions(tmp_path / "p.jsonl", {"box": 5, "point": 4})) == ""
    assert sentence_of(write_predictions(tmp_path / "p.jsonl", {"no_prompt": 5, "blind": 4})) == ""
