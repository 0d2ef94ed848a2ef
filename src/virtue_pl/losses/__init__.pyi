from .base import EmbeddingLoss as EmbeddingLoss
from .base import LossOutput as LossOutput
from .contrastive import ContrastiveLoss as ContrastiveLoss
from .contrastive import InfoNCELoss as InfoNCELoss
from .matryoshka import MatryoshkaLoss as MatryoshkaLoss
from .segmentation import dice_loss as dice_loss
from .segmentation import focal_loss as focal_loss
from .sigmoid import SigmoidLoss as SigmoidLoss
