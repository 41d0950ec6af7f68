"""Benchmarks, run from a checkout as `python -m recipes.benchmarks NAME`. They are not part of the installed package."""
