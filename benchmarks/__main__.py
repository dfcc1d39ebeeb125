"""`python -m benchmarks QUESTION [--quick] [--json] [--strict]`: see the docstring of each question's module."""

from __future__ import annotations

import argparse
import sys

from benchmarks import ask, call, lifetimes, listing, machine, memory, soak, startup, table

QUESTIONS = {
    "ask": ask,
    "call": call,
    "list": listing,
    "startup": startup,
    "memory": memory,
    "lifetimes": lifetimes,
    "soak": soak,
}


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    subparsers = parser.add_subparsers(dest="question", required=True)
    for name, module in QUESTIONS.items():
        form = argparse.RawDescriptionHelpFormatter
        sub = subparsers.add_parser(
            name, help=module.__doc__.splitlines()[0], description=module.__doc__, formatter_class=form
        )
        sub.add_argument("--quick", action="store_true", help="small and short: shows that it runs, proves nothing")
        sub.add_argument("--json", action="store_true", help="print data instead of tables")
        sub.add_argument("--strict", action="store_true", help="exit with status 1 if a figure misses what is wanted")
        module.add_arguments(sub)
    options = parser.parse_args()
    described = machine.describe()  # before the load
    claims, details = QUESTIONS[options.question].run(options)
    table.report(options.question, described, claims, details=details, as_json=options.json)
    if (fatal := getattr(QUESTIONS[options.question], "fatal", None)) is not None and fatal(claims):
        return 1
    return 1 if options.strict and not all(claim.reached for claim in claims) else 0


if __name__ == "__main__":
    sys.exit(main())
