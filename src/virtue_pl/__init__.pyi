from .embedder import Embedder as Embedder
from .losses.contrastive import ContrastiveLoss as ContrastiveLoss
from .models.fusion_head import VLMFusionHead as VLMFusionHead
from .models.segmentation_extractor import SegmentationExtractor as SegmentationExtractor
from .models.virtue import Virtue as Virtue
from .models.visual_prompt_encoder import VisualPromptEncoder as VisualPromptEncoder
from .types.errors import DataError as DataError
from .types.errors import VirtueError as VirtueError
from .types.prompts import Region as Region
from .types.prompts import VisualPrompt as VisualPrompt
from .types.samples import EmbeddingInput as EmbeddingInput

__version__: str
