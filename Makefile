# Every target uses the tools of the active environment: pip install -e ".[test]" brings them all.
.PHONY: check format test test-slow test-thorough

check:
	ruff check .
	ruff format --check .
	codespell .
	pyright

format:
	ruff check --fix .
	ruff format .

test:
	python -m pytest

test-slow:
	python -m pytest -m slow --timeout 600

test-thorough:
	python -m pytest -m thorough --timeout 3600
