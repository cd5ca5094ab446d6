"""Tokenizer files, one module a library: how each kind is read; models/tokenizer.py says what all of them promise."""
