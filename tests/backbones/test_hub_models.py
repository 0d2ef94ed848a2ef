"""Names of the hub where it does not answer: one line within seconds, and no second attempt."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from virtue_pl.backbones import hub_models
from virtue_pl.backbones.hub_models import check_available, hub_problem
from virtue_pl.backbones.segmentation.sam2_weights import read_sam2
from virtue_pl.backbones.text_encoder import load_text_encoder
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone
from virtue_pl.checkpoints.hub import local_folder
from virtue_pl.types import VirtueError


@pytest.fixture(autouse=True)
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were asked; nothing answers."""
    found: list[str] = []

    class Session:
        """A session of a network that is down."""

        def head(self, address: str, timeout: float) -> None:
            found.append(address)
            raise OSError(-2, "Name or service\nnot known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
    hub_problem.cache_clear()
    yield found
    hub_problem.cache_clear()


@pytest.mark.parametrize(
    ("load", "option"),
    [
        (lambda name: load_text_encoder(name, 0.0), "text_model"),
        (Qwen2VLBackbone, "vlm_model"),
        (read_sam2, "weights"),
        (local_folder, "model"),
    ],
)
def test_no_hub_is_one_line_that_says_the_ways_out(load, option, requests) -> None:
    with pytest.raises(VirtueError) as caught:
        load("nobody/no-such-model")
    told = str(caught.value)
    assert told.startswith(f"{option}: nobody/no-such-model is no folder here") and "\n" not in told
    assert f"cannot be fetched from {constants.ENDPOINT} ([Errno -2] Name or service not known)" in told
    assert "name a local folder" in told and "HF_HUB_OFFLINE=1" in told and requests == [constants.ENDPOINT]


def test_the_hub_is_asked_once(requests) -> None:
    for _ in range(3):
        with pytest.raises(VirtueError):
            check_available("nobody/no-such-model", "vlm_model")
    assert len(requests) == 1


def test_a_folder_asks_nobody(tmp_path: Path, requests) -> None:
    check_available(str(tmp_path), "vlm_model")
    check_available("./not/there", "vlm_model")  # whoever loads it says so
    assert not requests


def test_offline_mode_is_no_network_at_all(requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(VirtueError, match=r"\(HF_HUB_OFFLINE is set\)"):
        check_available("nobody/no-such-model", "vlm_model")
    assert not requests


def test_what_is_in_the_cache_is_taken_from_there_without_a_hub(requests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *arguments: "somewhere/config.json")
    check_available("somebody/model", "vlm_model")
    assert constants.HF_HUB_OFFLINE and constants.is_offline_mode()


def test_what_is_fetched_is_said(requests, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(hub_models, "hub_problem", lambda: "")
    monkeypatch.setattr(hub_models, "rank_zero_info", said.append)
    check_available("somebody/model", "vlm_model")
    assert said == [f"fetching somebody/model from {constants.ENDPOINT}, for vlm_model"]


def test_a_name_that_is_none(requests) -> None:
    with pytest.raises(VirtueError, match=r"text_model: a/b/c is no folder here, and no name of the hub"):
        check_available("a/b/c", "text_model")
