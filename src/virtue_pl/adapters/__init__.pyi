from .dora import FusedDora as FusedDora
from .dropout import QuickDropout as QuickDropout
from .lora import LoRA as LoRA
