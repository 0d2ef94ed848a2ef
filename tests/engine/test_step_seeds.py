"""The random numbers of a step: of the run's seed, the step and the rank alone, with and without a checkpoint."""

from __future__ import annotations

from typing import Any

import torch

from virtue_pl.engine.step_seeds import KEY, StepSeeds


def draw(seeds: StepSeeds, number: int = 3, rank: int = 0) -> list[float]:
    seeds.seed_batch(number, rank)
    return torch.rand(3).tolist()


def begun(seed: int, checkpoint: dict[str, Any] | None = None) -> StepSeeds:
    torch.manual_seed(seed)
    seeds = StepSeeds()
    if checkpoint is not None:
        seeds.load(checkpoint)
    seeds.begin()
    return seeds


def test_a_step_draws_what_seed_step_and_rank_say() -> None:
    one = begun(0)
    torch.rand(17)
    assert draw(one) == draw(begun(0))
    others = [draw(begun(0)), draw(begun(1)), draw(begun(0), number=4), draw(begun(0), rank=1)]
    assert len({tuple(other) for other in others}) == 4


def test_a_run_goes_on_with_the_seed_of_its_checkpoint() -> None:
    checkpoint: dict[str, Any] = {}
    begun(5).save(checkpoint)
    assert checkpoint == {KEY: 5}
    assert draw(begun(7, checkpoint)) == draw(begun(5)) != draw(begun(7))


def test_a_checkpoint_of_an_earlier_version_has_no_seed() -> None:
    assert draw(begun(7, {})) == draw(begun(7))
