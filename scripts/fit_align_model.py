#!/usr/bin/env python3
"""The lines by which align's "auto" chooses where no table has a key (src/ops/align/choose.cpp), fitted to measured times.

    fit_align_model.py [--write] FILE...

FILE: points of `mixlane tune --stage align --regret --json FILE`, all of one kind of machine. Each variant's line is fitted to its times
where it is near the best, by least squares of the relative error; then constants are changed at random as long as that lowers the regret,
the time of what the lines choose over that of the best variant, minus 1: its mean, and its fourth moment, so that the worst points
count. Prints how the lines do on all points, those of choose.cpp and the new ones, and the new ones; --write puts them into choose.cpp.
"""
import argparse
import json
import pathlib
import random
import re

CHOOSE = pathlib.Path(__file__).resolve().parent.parent / "src/ops/align/choose.cpp"
NAMES = {
    "align.none": "kNone",
    "align.oneshot": "kOneshot",
    "align.cluster": "kCluster",
    "align.multi_phase": "kMultiPhase",
    "align.radix": "kRadix",
}
ALL_SHARE = ("align.multi_phase", "align.radix")  # all multiprocessors share the pairs
KINDS = ("dense i32", "other")
MOST_GROUPS = 1028  # above, align.radix is alone
NEAR = 1.3  # times the best: where a variant's time matters
ENOUGH = 20  # points to fit a line to
STEPS = 3000
FITTED_POINTS = 1500  # of a kind, picked at random: enough for twenty constants
FACTORS = (0.8, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.25)


class Model:
    """The lines of choose.cpp: of each kind of ids and variant launch_us, group_ns, pair_ns, ramp_us; of each variant ramp_pairs."""

    def __init__(self, multiprocessors):
        text = CHOOSE.read_text()
        self.sharing = {variant: multiprocessors if variant in ALL_SHARE else 1 for variant in NAMES}
        self.lines = {kind: {} for kind in KINDS}
        self.ramp_pairs = {}
        for variant, name in NAMES.items():
            found = re.search(rf"Lines {name}\{{\{{(.*?)\}}, \{{(.*?)\}}, (.*?)\}}", text)
            for kind, constants in zip(KINDS, found.groups()):
                self.lines[kind][variant] = [float(number) for number in constants.split(",")]
            self.ramp_pairs[variant] = float(found.group(3))

    def terms(self, variant, groups, pairs):
        """What the constants of a line are multiplied by."""
        ramp_pairs = self.ramp_pairs[variant]
        return 1, 1e-3 * groups, 1e-3 * pairs / self.sharing[variant], min(pairs / ramp_pairs, 1) if ramp_pairs else 0

    def points_of(self, file):
        """(kind of ids, terms by variant, us by variant, text)"""
        return [
            (KINDS[p["ids"] != "i32"],
             {variant: self.terms(variant, p["experts"], p["topk"] * p["tokens"]) for variant in p["us"]},
             p["us"],
             "{experts}x{topk} {ids} tokens={tokens} {spread} block={block}".format(**p))
            for p in json.loads(pathlib.Path(file).read_text())
            if len(p["us"]) > 1 and p["experts"] <= MOST_GROUPS
        ]

    def text_of(self, variant):
        both = (", ".join(f"{constant:.3g}" for constant in self.lines[kind][variant]) for kind in KINDS)
        return "Lines {}{{{{{}}}, {{{}}}, {:g}}}".format(NAMES[variant], *both, self.ramp_pairs[variant])


def estimate(line, terms):
    return sum(constant * term for constant, term in zip(line, terms))


def regrets(points, lines):
    for kind, terms, us, text in points:
        chosen = min(us, key=lambda variant: estimate(lines[variant], terms[variant]))
        yield us[chosen] / min(us.values()) - 1, text, chosen, us


def score(points, lines):
    each = [regret for regret, *_ in regrets(points, lines)]
    return sum(each) / len(each) + 0.5 * (sum(r**4 for r in each) / len(each)) ** 0.25


def least_squares(rows):
    """x, none below 0, for which the rows' products with it are nearest to 1. Columns that are zero stay out."""
    used = [i for i in range(len(rows[0])) if any(row[i] for row in rows)]
    while True:
        table = [[sum(row[i] * row[j] for row in rows) for j in used] + [sum(row[i] for row in rows)] for i in used]
        for i, row in enumerate(table):
            pivot = row[i]
            table[i] = [value / pivot for value in row]
            for k, other in enumerate(table):
                if k != i:
                    table[k] = [value - other[i] * top for value, top in zip(other, table[i])]
        lowest = min(range(len(used)), key=lambda i: table[i][-1])
        if table[lowest][-1] >= 0:
            found = dict(zip(used, (row[-1] for row in table)))
            return [found.get(i, 0.0) for i in range(len(rows[0]))]
        del used[lowest]


def fitted(points, lines):
    """Lines by their own times alone; those without points stay."""
    fresh = {}
    for variant, line in lines.items():
        near = [(terms[variant], us[variant]) for _, terms, us, _ in points
                if variant in us and us[variant] <= NEAR * min(us.values())]
        enough = len(near) >= ENOUGH
        fresh[variant] = least_squares([[term / us for term in terms] for terms, us in near]) if enough else line
    return fresh


def improved(points, lines):
    points = random.sample(points, min(FITTED_POINTS, len(points)))
    best = score(points, lines)
    for _ in range(STEPS):
        trial = {variant: list(constants) for variant, constants in lines.items()}
        for _ in range(random.choice((1, 1, 2, 3))):
            trial[random.choice(list(trial))][random.randrange(4)] *= random.choice(FACTORS)
        now = score(points, trial)
        if now < best:
            lines, best = trial, now
    return lines


def tell(what, points, lines):
    worst = sorted(regrets(points, lines), key=lambda each: -each[0])
    mean = sum(each[0] for each in worst) / len(worst)
    late = sum(each[0] > 0.05 for each in worst)
    print(f"{what}: {len(worst)} points, mean {mean:.2%}, worst {worst[0][0]:.1%}, above 5%: {late}")
    for regret, text, chosen, us in worst[:3]:
        print(f"    {regret:.1%} {text}: {chosen} of {', '.join(f'{variant} {time:.2f}' for variant, time in us.items())}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--write", action="store_true", help="into choose.cpp")
    parser.add_argument("--multiprocessors", type=int, default=132, help="of the machine that was measured [132]")
    args = parser.parse_args()
    random.seed(1)
    model = Model(args.multiprocessors)
    everything = [point for file in args.files for point in model.points_of(file)]
    for kind in KINDS:
        points = [point for point in everything if point[0] == kind]
        if not points:
            continue
        tell(f"{kind}, now", points, model.lines[kind])
        model.lines[kind] = improved(points, fitted(points, model.lines[kind]))
        tell(f"{kind}, fitted", points, model.lines[kind])
    for variant, name in NAMES.items():
        print(model.text_of(variant))
        if args.write:
            CHOOSE.write_text(re.sub(rf"Lines {name}\{{.*\}}", model.text_of(variant), CHOOSE.read_text()))


if __name__ == "__main__":
    main()
