from .options import RayOptions as RayOptions
from .session import ActorPool as ActorPool
from .session import data_context as data_context
from .session import ray_session as ray_session
