"""Run a benchmark: python -m recipes.benchmarks NAME [options]; NAME is one of the keys of BENCHMARKS."""

import importlib
import sys

from mscl_hf.cli import command

BENCHMARKS = {
    "tables": "tables.run",
    "compare": "compare",
    "methods": "method_costs",
    "speed": "speed.run",
    "export": "speed.export",
    "lite0-weights": "lite0_weights",
}


@command
def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        raise ValueError(f"the benchmark is {name!r}; expected one of {', '.join(BENCHMARKS)}.")
    sys.argv[0] = f"python -m recipes.benchmarks {name}"  # the program of --help
    importlib.import_module(f".{BENCHMARKS[name]}", __package__).main(sys.argv[2:])


if __name__ == "__main__":
    main()
