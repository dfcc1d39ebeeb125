"""`python -m benchmarks QUESTION`, or `bin/bench QUESTION`: the cost of the gateway, measured here.

`python -m benchmarks QUESTION --help` describes a question and its method. `all` runs them one after the other.
`--config FILE --tool NAME` (the question `own`) measures your own backends.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

from benchmarks import machine, page, progress, show

QUESTIONS = {
    "call": "call",
    "compare": "compare",
    "list": "listing",
    "startup": "startup",
    "memory": "memory",
    "recovery": "recovery",
    "lifetimes": "lifetimes",
    "fairness": "fairness",
    "scale": "scale",
    "ask": "ask",
    "soak": "soak",
    "costs": "costs",
    "tracing": "tracing",
    "reload": "reload",
    "own": "own",
    "profile": "profile",
    "peers": "peers.compare",
}
"""Question -> its module."""
APART = ("own", "profile", "peers")
"""Not part of `all`: one needs a target, one compares nothing, one installs the programs it compares with."""


def make_parser():
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=form)
    subparsers = parser.add_subparsers(dest="question", required=True)
    for name, module_name in QUESTIONS.items():
        module = importlib.import_module(f"benchmarks.{module_name}")
        first = module.__doc__.split("\n\n")[0].replace("\n", " ").removeprefix("Question: ")
        sub = subparsers.add_parser(name, help=first, description=module.__doc__, formatter_class=form)
        add_common_arguments(sub)
        module.add_arguments(sub)
        sub.set_defaults(modules={name: module})
    everything = subparsers.add_parser("all", help=f"all of them but {' and '.join(APART)}, with their defaults")
    add_common_arguments(everything)
    return parser


def add_common_arguments(parser):
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it runs, proves nothing")
    parser.add_argument("--json", action="store_true", help="print data instead of tables")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a figure misses its target")
    parser.add_argument("--report", metavar="DIR", help="add the results, with plots, to the page DIR/index.html")


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(word == "--config" or word.startswith("--config=") for word in arguments) and "own" not in arguments:
        arguments = ["own", *arguments]
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.question != "all":
        return ask(options)
    common = [f"--{name}" for name in ("quick", "json", "strict") if getattr(options, name)]
    common += ["--report", options.report] if options.report else []
    worst = 0
    for name in QUESTIONS:
        if name not in APART:
            worst = max(worst, ask(parser.parse_args([name, *common])))
    return worst


def ask(options):
    """Run one question; return the exit status."""
    ((question, module),) = options.modules.items()
    described = machine.describe()  # before the load
    with progress.shown(question):
        claims, details = module.run(options)
    show.report(question, described, claims, details=details, as_json=options.json)
    if options.report:
        path = page.keep(options.report, question, module, described, claims, details)
        print(f"the report is {path}", file=sys.stderr)
    if (fatal := getattr(module, "fatal", None)) is not None and fatal(claims):
        return 1
    return 1 if options.strict and not all(claim.reached for claim in claims) else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # as Ctrl-C, so that children end
    sys.exit(main())
