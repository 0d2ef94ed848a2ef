from .checkpoint import LastCheckpoint as LastCheckpoint
from .compilation import CompileRegions as CompileRegions
from .embedding_writer import EmbeddingWriter as EmbeddingWriter
from .feature_writer import FeatureWriter as FeatureWriter
from .prompt_images import PromptImages as PromptImages
from .ranking_report import RankingReport as RankingReport
from .skip_report import SkipReport as SkipReport
from .throughput import Throughput as Throughput
