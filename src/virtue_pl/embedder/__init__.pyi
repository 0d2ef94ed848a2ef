from .embedder import Embedder as Embedder
from .image_handle import ImageHandle as ImageHandle
from .vectors import PRECISIONS as PRECISIONS
from .vectors import convert_vectors as convert_vectors
