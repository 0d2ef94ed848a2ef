"""Worth of a visual prompt to a model, in a sentence: the same queries with a prompt and without one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from virtue_pl.evaluation.reports.tables import figure
from virtue_pl.evaluation.retrieval.predictions import read_predictions
from virtue_pl.evaluation.statistics.compare import RANKING, compare
from virtue_pl.evaluation.statistics.compared_run import ComparedRun
from virtue_pl.evaluation.statistics.intervals import Estimate
from virtue_pl.evaluation.statistics.summary import Chance, Results, standard_errors

PROMPTS = {"box": "a box", "point": "a click", "mask": "a mask"}
"""Modes that are prompts, in words; the first one that was ranked is spoken of."""
NO_PROMPT = "no_prompt"


class PromptWorth(NamedTuple):
    """Shares of one set with a prompt and without, each with its standard error, and their paired difference.

    Example:
        >>> worth = PromptWorth("test_seen", "box", "80.4±1.5", "34.0±1.8", Estimate(0.46, 0.42, 0.51, 700, 1))
        >>> worth.difference.excludes_zero
        True
    """

    set_name: str
    mode: str
    with_prompt: str
    without: str
    difference: Estimate


def prompt_worth(predictions: Path, results: Results) -> list[PromptWorth]:
    """Return what a prompt is worth in each set, the queries paired; nothing where no mode without one was ranked.

    predictions: a test's `predictions.jsonl`. results: of the same test, by task.
    """
    found: list[PromptWorth] = []
    mode = next((mode for mode in PROMPTS if any(mode in modes for modes in results.values())), None)
    if mode is None or not any(NO_PROMPT in modes for modes in results.values()):
        return found
    training = (read_predictions(predictions),)
    compared = [ComparedRun(name, training, name, NO_PROMPT) for name in (NO_PROMPT, mode)]
    for task, runs in compare(compared).differences.items():
        given, without = (
            figure(results[task][name][RANKING], standard_errors(results[task][name])[RANKING])
            for name in (mode, NO_PROMPT)
        )
        found.append(PromptWorth(task.rpartition("/")[2], mode, given, without, runs[mode][RANKING]))
    return sorted(found, key=lambda worth: worth.set_name, reverse=True)  # test_seen before test_held_out


def describe_worth(found: list[PromptWorth], chance_levels: Chance) -> str:
    """Return a sentence for each set, and one on what ± is. Empty where nothing was compared."""
    if not found:
        return ""
    sentences = [sentence(worth, chance_levels.get(worth.set_name, {})) for worth in found]
    return " ".join([*sentences, "± is the standard error over queries, of one training."])


def sentence(worth: PromptWorth, chance_levels: Mapping[str, float]) -> str:
    """Return what the prompt is worth in one set."""
    low, high = (f"{100 * bound:+.1f}" for bound in (worth.difference.low, worth.difference.high))
    objects = worth.set_name.removeprefix("test_").replace("_", "-")
    among = f" among {round(1 / chance_levels[RANKING])}" if chance_levels.get(RANKING) else ""
    points = f"{100 * worth.difference.mean:+.1f} points, 95 % interval {low} to {high}"
    sure = "" if worth.difference.excludes_zero else ", which may be nothing"
    return (
        f"On {objects} objects, with {PROMPTS[worth.mode]} the right caption{among} comes first for"
        f" {spaced(worth.with_prompt)} % of the queries, without a prompt for {spaced(worth.without)} %: the prompt is"
        f" worth {points}{sure}."
    )


def spaced(share: str) -> str:
    """Return a figure with spaces around its ±."""
    return share.replace("±", " ± ")
