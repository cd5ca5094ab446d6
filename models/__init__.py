"""The four model families in plain PyTorch: load a checkpoint, make a prompt, generate."""

from .base import CheckpointError
from .blocks import MEASURED, Blocks, clear_blocks, identity
from .chat_formats import chat_formats
from .drafting import Lookup
from .fill import fill_prompt
from .footprint import Footprint, footprint
from .formats import check_files, is_adapter, open_adapter
from .generate import CHUNK, End, Event, Read, Timings, Token, generate
from .inspection import Report, inspect
from .loader import LoadedModel, adapted, family_of, load, load_tokenizer
from .memory import OUT_OF_MEMORY, give_back, once_more, ran_out
from .prompts import Prompt, shared
from .reuse import CachePool
from .sampling import BadLogitsError, Sampling

__all__ = [
    "CHUNK",
    "MEASURED",
    "OUT_OF_MEMORY",
    "BadLogitsError",
    "Blocks",
    "CachePool",
    "CheckpointError",
    "End",
    "Event",
    "Footprint",
    "LoadedModel",
    "Lookup",
    "Prompt",
    "Read",
    "Report",
    "Sampling",
    "Timings",
    "Token",
    "adapted",
    "chat_formats",
    "check_files",
    "clear_blocks",
    "family_of",
    "fill_prompt",
    "footprint",
    "generate",
    "give_back",
    "identity",
    "inspect",
    "is_adapter",
    "load",
    "load_tokenizer",
    "once_more",
    "open_adapter",
    "ran_out",
    "shared",
]
