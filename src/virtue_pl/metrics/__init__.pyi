from .mask_iou import MaskIoU as MaskIoU
from .rank_metrics import HitRate as HitRate
from .rank_metrics import RankTable as RankTable
from .retrieval import RetrievalMetrics as RetrievalMetrics
