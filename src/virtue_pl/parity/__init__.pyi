from .compare import Tolerances as Tolerances
from .result import ParityRow as ParityRow
