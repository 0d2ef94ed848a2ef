from .checkpoint_io import WholeCheckpointIO as WholeCheckpointIO
from .fsdp import Sharding as Sharding
from .gradient_cache import ChunkEncoder as ChunkEncoder
from .gradient_cache import FullBatch as FullBatch
from .gradient_cache import GradientCache as GradientCache
from .module import VirtueModule as VirtueModule
from .optimizer import Optimization as Optimization
