"""The application: wires models and knowledge to the user."""

__version__ = "0.9.0"
