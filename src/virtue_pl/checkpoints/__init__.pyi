from .export import export as export
from .pretrained import from_pretrained as from_pretrained
from .pretrained import start_from as start_from
from .release import CheckpointSpec as CheckpointSpec
