# `just check` is what CI runs.
check: lint test

lint:
    ruff check .
    ruff format --check .
    lint-imports

test *args:
    pytest {{args}}

slow:
    pytest -m slow

format:
    ruff check --fix .
    ruff format .
