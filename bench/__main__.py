"""``python -m bench``: run everything once, print medians, ratios and the aims.

Nothing here fails on a slow machine: times depend on the host, so the ratios are shown as ok or missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import bare, contenders
from bench.clock import Contender, race
from bench.shrink import shrink

#: Images a second of a warm machine against qemu-img processes, at least.
AIM_WARM = 5.0
#: The command line against a bare interpreter start, at most.
AIM_CLI = 2.5
#: Closing the jail of a process that has been started, in milliseconds, at most.
AIM_JAIL = 10.0
#: qemu-img's shrinking of a qcow2 image of 512-byte clusters against ours, at least.
AIM_SHRINK = 1.0


@dataclass(frozen=True)
class Row:
    """A line of the table: wall time in microseconds."""

    name: str
    median_us: float
    best_us: float


@dataclass(frozen=True)
class Ratio:
    """Two medians divided; ``aim`` is what is wanted, as text, ``ok`` None where nothing is."""

    name: str
    value: float
    aim: str | None = None
    ok: bool | None = None


@dataclass(frozen=True)
class Cost:
    """What one warm measurement uses."""

    name: str
    exits: int
    read_bytes: int


@dataclass(frozen=True)
class Result:
    rows: list[Row]
    ratios: list[Ratio]
    costs: list[Cost]


def run(rounds: int) -> Result:
    with tempfile.TemporaryDirectory(prefix="pyvmm-bench-") as name:
        folder = Path(name)
        program = bare.build(folder)
        with contenders.Bench(folder) as bench:
            sample = bench.images[0]
            sample_qemu = contenders.qemu_img(sample)
            field: list[Contender] = [contenders.bare_interpreter(), contenders.command_line(sample)]
            field.append(contenders.command_line(sample, "--sandbox=off"))
            field.append(bench.start_jail())
            field.append(bench.measure_cold(sample))
            field.extend(bench.measure_warm(image) for image in bench.images)
            field.extend(bench.measure_jailed(image) for image in bench.images)
            field.extend(one for image in bench.images if (one := contenders.qemu_img(image)) is not None)
            lives: list[int] = []
            field.append(Contender("bare VM in C", lambda: lives.extend(bare.lives(program, 1))))
            times = race(field, rounds)
            costs = [Cost(image.name, (usage := bench.exits(image)).exits, usage.read_bytes) for image in bench.images]
            rows = [Row(s.name, s.median / 1000, s.best / 1000) for s in times.values() if s.name != "bare VM in C"]
            floor = statistics.median(lives[1:])
            rows.append(Row("bare VM in C", floor / 1000, min(lives[1:]) / 1000))
            closings = [ns / 1000 for ns in bench.closings[1:]]
            rows.append(Row("jail: close", statistics.median(closings), min(closings)))
            median = {row.name: row.median_us for row in rows}
            ratios = [Ratio("cold life cycle / bare VM in C", median[f"cold {sample.name}"] / (floor / 1000))]
            cli = median[f"pyvmm {sample.name}"] / median["python -c pass"]
            ratios.append(Ratio("command line / python -c pass", cli, f"<= {AIM_CLI}", cli <= AIM_CLI))
            free = median[f"pyvmm --sandbox=off {sample.name}"]
            ratios.append(Ratio("command line / without its jail", median[f"pyvmm {sample.name}"] / free))
            for image in bench.images:
                cost = median[f"jailed {image.name}"] / median[f"warm {image.name}"]
                ratios.append(Ratio(f"warm in its jail / without, {image.name}", cost))
            closing = median["jail: close"] / 1000
            ratios.append(Ratio("closing the jail, ms", closing, f"<= {AIM_JAIL}", closing <= AIM_JAIL))
            if sample_qemu is not None:
                for image in bench.images:
                    faster = median[f"qemu-img {image.name}"] / median[f"jailed {image.name}"]
                    ratios.append(
                        Ratio(f"jailed images/s / qemu-img, {image.name}", faster, f">= {AIM_WARM}", faster >= AIM_WARM)
                    )
                slower = median[f"pyvmm {sample.name}"] / median[f"qemu-img {sample.name}"]
                ratios.append(Ratio("command line / qemu-img process", slower))
        large, small, theirs = shrink(folder)
        rows.append(Row("pyvmm shrink by 1 GiB", large, large))
        rows.append(Row("pyvmm shrink by 15 MiB", small, small))
        if theirs is not None:
            rows.append(Row("qemu-img shrink by 15 MiB", theirs, theirs))
            gain = theirs / small
            ratios.append(Ratio("qemu-img / pyvmm, shrink by 15 MiB", gain, f">= {AIM_SHRINK}", gain >= AIM_SHRINK))
    return Result(rows, ratios, costs)


def show(result: Result) -> None:
    print(f"{'':34}{'median µs':>12}{'best µs':>12}{'per second':>12}")
    for row in result.rows:
        print(f"{row.name:34}{row.median_us:12,.0f}{row.best_us:12,.0f}{1e6 / row.median_us:12,.0f}")
    print()
    for ratio in result.ratios:
        verdict = "" if ratio.ok is None else f"  aim {ratio.aim}: {'ok' if ratio.ok else 'missed'}"
        print(f"{ratio.name:46}{ratio.value:8.2f}{verdict}")
    print()
    for cost in result.costs:
        print(f"one warm measure of {cost.name:14}{cost.exits:6} exits{cost.read_bytes:12,} bytes read")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="samples of each contender (default 30)")
    parser.add_argument("--output", choices=("human", "json"), default="human")
    arguments = parser.parse_args()
    result = run(max(arguments.rounds, 1))
    if arguments.output == "json":
        json.dump(asdict(result), sys.stdout, indent=4)
        print()
    else:
        show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
