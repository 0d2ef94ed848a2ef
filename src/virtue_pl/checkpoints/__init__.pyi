from .export import export as export
from .pretrained import from_pretrained as from_pretrained
from .release import CheckpointSpec as CheckpointSpec
