from .contrastive_collator import ContrastiveCollator as ContrastiveCollator
from .input_formatters import CropFormatter as CropFormatter
from .input_formatters import InputFormatter as InputFormatter
from .input_formatters import MarkerFormatter as MarkerFormatter
from .input_formatters import PublishedFormatter as PublishedFormatter
from .input_formatters import VirtueFormatter as VirtueFormatter
from .processor import VLMProcessor as VLMProcessor
from .region_collator import RegionCollator as RegionCollator
