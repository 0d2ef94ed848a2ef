"""The paper's configs without their data, whose dozens of datasets take longer to parse than the model takes to build
on the meta device.
"""

from __future__ import annotations

import re
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"


def without_data(folder: Path, size: str = "2b") -> Path:
    """A copy of virtue_2b.yaml or virtue_7b.yaml in `folder`; the parts it names are those in configs/."""
    text, removed = re.subn(r"\ndata: .*", "", (CONFIGS / f"virtue_{size}.yaml").read_text())
    assert removed == 1
    path = folder / f"virtue_{size}.yaml"
    path.write_text(re.sub(r": (\w+/\w+\.yaml)", rf": {CONFIGS}/\1", text))
    return path
