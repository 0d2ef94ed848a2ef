"""Composed scenes in SCaR's own format.

They are cut-out photographs on named backgrounds, with exact masks and balanced captions.
"""

from virtue_pl.data.scenes.config import SceneConfig
from virtue_pl.data.scenes.writer import write_scenes

__all__ = ["SceneConfig", "write_scenes"]
