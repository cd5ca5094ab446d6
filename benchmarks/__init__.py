"""What is fast, small or exact, measured side by side: `python -m benchmarks NAME [--json]`. Nothing imports it."""
