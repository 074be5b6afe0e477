"""``python -m fuzzing TARGET``: see ``fuzzing/README.md``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fuzzing import campaign, targets


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzzing", description="Fuzz what reads hostile bytes on the host.")
    parser.add_argument("target", choices=(*targets.NAMES, "all"))
    parser.add_argument("--seconds", type=int, default=60, help="of each target (default: 60)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: another each time)")
    parser.add_argument("--work", type=Path, default=campaign.ROOT / "build" / "fuzz", help="where everything is kept")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--seeds", action="store_true", help="only make the first inputs, by running the real thing")
    what.add_argument(
        "--merge", action="store_true", help="only make the committed corpus anew from all inputs; needs no atheris"
    )
    what.add_argument("--replay", nargs="*", type=Path, help="only run these inputs, or the corpus; needs no atheris")
    return parser.parse_args()


def _replay(target: targets.Target, paths: list[Path]) -> None:
    chosen = paths or targets.inputs(target.name)
    for path in chosen:
        target.run(path.read_bytes())
    print(f"{target.name}: {len(chosen)} inputs: no finding")


def main() -> int:
    """Exit status 1 when something was found."""
    arguments = _arguments()
    clean = True
    for name in targets.NAMES if arguments.target == "all" else (arguments.target,):
        target = targets.load(name)
        work = arguments.work.resolve() / name
        if arguments.seeds:
            inputs = [data[: target.max_length] for data in target.seeds()]
            campaign.write_inputs(work / "corpus", inputs)
            print(f"{name}: {len(inputs)} seeds")
        elif arguments.merge:
            print("{}: {} inputs, {} bytes".format(name, *campaign.merge(target, work)))
        elif arguments.replay is not None:
            _replay(target, arguments.replay)
        else:
            result = campaign.run(target, work, seconds=arguments.seconds, jobs=arguments.jobs, seed=arguments.seed)
            print(result.line(name), flush=True)
            for text in result.trouble:
                print(text, file=sys.stderr)
            clean = clean and result.clean
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
