"""Ten minutes of chaos: is a request lost, or served twice, and does anything leak?

Hard about it: whether a request that failed had to fail can only be said by somebody who knows when
each engine could have served it, and what each of them did. The engines are therefore processes
that write down every generation, and whenever one is killed, stopped, started or taken out of the
pool, that is noted; the judge (`tests/chaos/judge.py`) holds it against what the clients saw. What
the router holds is counted inside of it, so it runs in this process.

    python benchmarks/chaos.py [--minutes 10] [--seed N] [--clients 14] [--engines 4] [--keep DIR]

Ends with status 0 where nothing was lost, served twice or left. The same seed does the same things,
if not at the same moments: those are the machine's.
"""

import argparse
import logging
import random
import sys
import tempfile
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.chaos.run import Plan, chaos


def arguments() -> argparse.Namespace:
    assert __doc__ is not None, "it begins with what is asked"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of trouble")
    parser.add_argument("--seed", type=int, help="repeats a run, as far as that can be; else any")
    parser.add_argument("--clients", type=int, default=14, help="that ask at a time")
    parser.add_argument("--engines", type=int, default=4, help="processes; at least two")
    parser.add_argument("--keep", metavar="DIR", help="keep the engines' logs there")
    return parser.parse_args()


def main(options: argparse.Namespace) -> int:
    if options.engines < 2 or options.clients < 1:
        raise SystemExit(
            f"{options.engines} engines and {options.clients} clients: at least two and one are "
            "needed (options --engines and --clients)"
        )
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    plan = Plan(seed, options.minutes * 60, options.engines, options.clients)
    print(f"{plan}\n", flush=True)
    logging.basicConfig(level=logging.ERROR)  # that engines go down is what it is about
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        kept = Path(options.keep or folder)
        kept.mkdir(parents=True, exist_ok=True)
        verdict = uvloop.run(chaos(plan, kept, lambda line: print(line, flush=True)))
    print(f"\n{verdict}")
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main(arguments()))
