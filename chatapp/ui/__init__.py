"""The page. The only package that knows Gradio."""

from .page import mount

__all__ = ["mount"]
