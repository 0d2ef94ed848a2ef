"""A task of MTEB's image side on a tiny model: scores are the embedder's, and the segmentation stream is in them."""

from __future__ import annotations

import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from mteb.models.models_protocols import EncoderProtocol
from mteb.types import PromptType
from PIL import Image

from virtue_pl.checkpoints.run_checkpoint import read_run
from virtue_pl.embedder import Embedder
from virtue_pl.integrations.mteb import MTEBModel, batch_rows
from virtue_pl.types import VirtueError

LABELS = ["a red image", "a green image", "a blue image"]
IMAGES = [
    Image.fromarray(np.full((40 + 4 * number, 60, 3), np.eye(3, dtype=np.uint8)[number % 3] * 200))
    for number in range(6)
]
INSTRUCTION = "Name the colour."


class Colours(AbsTaskZeroShotClassification):
    metadata = TaskMetadata(
        name="TinyColours",
        description="Which of three colours an image has.",
        reference=None,
        dataset={"path": "none", "revision": "none"},
        type="ZeroShotClassification",
        category="i2t",
        modalities=["image", "text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="accuracy",
        prompt=INSTRUCTION,
    )

    def load_data(self, num_proc: int | None = None, **kwargs: object) -> None:
        self.dataset = DatasetDict(
            {"test": Dataset.from_dict({"image": IMAGES, "label": [number % 3 for number in range(6)]})}
        )
        self.data_loaded = True

    def get_candidate_labels(self) -> list[str]:
        return LABELS


# a random model may choose one colour always
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_a_task_is_scored_with_the_segmentation_stream(exported, monkeypatch):
    model = MTEBModel(str(exported), device="cpu", batch_size=2)
    assert isinstance(model, EncoderProtocol)
    segmented: list[int] = []
    segment = model.model.model.segment
    monkeypatch.setattr(
        model.model.model, "segment", lambda inputs: segmented.append(len(inputs.prompts)) or segment(inputs)
    )
    result = mteb.evaluate(model, Colours(), cache=None, show_progress_bar=False, co2_tracker=False)
    (score,) = result.task_results[0].scores["test"]
    assert sum(segmented) == len(IMAGES), "every image passes through the segmentation model, once"
    images = model.model.encode(INSTRUCTION, IMAGES)
    chosen = (images @ model.model.encode(LABELS).T).argmax(axis=1)
    assert score["accuracy"] == pytest.approx((chosen == np.arange(6) % 3).mean())
    assert result.model_name == "virtue_pl/exported"


def test_the_stream_changes_what_mteb_is_given(exported):
    """Without its segment tokens, as in MTEB's own entry, the same weights embed images otherwise, and texts alike."""
    whole, without = (MTEBModel(str(exported), device="cpu") for _ in range(2))
    without.model.model.segment_unprompted = without.model.collator.segment_unprompted = False
    options = {"task_metadata": Colours.metadata, "hf_split": "test", "hf_subset": "default"}
    images, texts = [{"image": IMAGES[:2]}], [{"text": LABELS}]
    assert not np.allclose(whole.encode(images, **options), without.encode(images, **options), atol=1e-3)
    np.testing.assert_allclose(whole.encode(texts, **options), without.encode(texts, **options), atol=1e-6)


def test_order_and_windows(exported, monkeypatch):
    model = MTEBModel(str(exported), device="cpu")
    options = {
        "task_metadata": Colours.metadata,
        "hf_split": "test",
        "hf_subset": "default",
        "prompt_type": PromptType.query,
    }
    batches = [
        {"text": ["one", "a much longer text than the others"]},
        {"text": ["three", None], "image": [None, IMAGES[0]]},
    ]
    found = model.encode(batches, **options)
    monkeypatch.setattr("virtue_pl.integrations.mteb.WINDOW", 1)
    np.testing.assert_allclose(model.encode(batches, **options), found, atol=1e-5)
    expected = model.model.encode([f"{INSTRUCTION} three", INSTRUCTION], [None, IMAGES[0]])
    np.testing.assert_allclose(found[2:], expected, atol=1e-5)
    assert model.encode([], **options).shape == (0, model.model.embed_dim)


@pytest.mark.parametrize(
    ("prompt", "role", "texts"),
    [
        (INSTRUCTION, PromptType.query, [f"{INSTRUCTION} a", f"{INSTRUCTION} b"]),
        (INSTRUCTION, PromptType.document, ["a", "b"]),
        ({"query": "Find.", "document": "Represent."}, PromptType.document, ["Represent. a", "Represent. b"]),
        ({"query": "Find."}, PromptType.document, ["a", "b"]),
        (INSTRUCTION, None, ["a", f"{INSTRUCTION} b"]),
    ],
)
def test_each_role_has_its_instruction(exported, prompt, role, texts):
    model = MTEBModel(Embedder(read_run(exported.parent / "run" / "checkpoints" / "last.ckpt").build(), "cpu"))
    task = Colours.metadata.model_copy(update={"prompt": prompt})
    batch = {"text": ["a", "b"], "image": [None, IMAGES[0]]}
    found = list(batch_rows(batch, model.instruction(task, role), role))
    assert [item.text for item in found] == texts
    assert [len(item.images) for item in found] == [0, 1] and torch.equal(
        found[1].images[0][:, 0, 0], torch.tensor([200, 0, 0], dtype=torch.uint8)
    )


def test_another_modality_is_one_line():
    with pytest.raises(VirtueError, match=r"MTEB gave a batch of audio, expected text, image or both"):
        list(batch_rows({"audio": []}, "", None))
