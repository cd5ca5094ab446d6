"""Programs that run a model, each in a process of its own: ours and its peers behind the same few questions.

Nothing is imported here: a peer's Python has neither PyTorch nor our requirements.
"""
