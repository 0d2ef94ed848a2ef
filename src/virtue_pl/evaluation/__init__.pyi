from .evaluator import Evaluator as Evaluator
from .retrieval.query_encoder import QueryEncoder as QueryEncoder
from .settings import EncodingOptions as EncodingOptions
from .settings import LoadingOptions as LoadingOptions
from .settings import QueryFormat as QueryFormat
from .settings import ReportOptions as ReportOptions
