"""The four model families in plain PyTorch: load a checkpoint, make a prompt, generate."""

from .base import CheckpointError
from .chat_formats import chat_formats
from .fill import fill_prompt
from .footprint import Footprint, footprint
from .generate import CHUNK, End, Event, Read, Timings, Token, generate
from .loader import LoadedModel, family_of, load, load_tokenizer
from .memory import OUT_OF_MEMORY, give_back, once_more, ran_out
from .prompts import Prompt, shared
from .sampling import BadLogitsError, Sampling

__all__ = [
    "CHUNK",
    "OUT_OF_MEMORY",
    "BadLogitsError",
    "CheckpointError",
    "End",
    "Event",
    "Footprint",
    "LoadedModel",
    "Prompt",
    "Read",
    "Sampling",
    "Timings",
    "Token",
    "chat_formats",
    "family_of",
    "fill_prompt",
    "footprint",
    "generate",
    "give_back",
    "load",
    "load_tokenizer",
    "once_more",
    "ran_out",
    "shared",
]
