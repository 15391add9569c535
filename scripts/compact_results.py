#!/usr/bin/env python3
"""Result files for keeping: without samples, numbers of five digits, a record per line.

    compact_results.py OUT_FOLDER RESULT.json...

Files of one model and quantisation from several runs become one, OUT_FOLDER/<model>__q<quant>.json, with the environment and
peaks of the first and all commands; of a row that was measured twice the later one counts. What remains is what `mixlane report` shows; `mixlane compare` needs the samples.
"""
import json
import pathlib
import sys


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def compact(run):
    for record in run["records"]:
        for stage in record["stages"]:
            stage["samples_us"] = []
    return rounded(run)


def key(record):
    return record["tokens"], record["workload"], record["mode"], record["cache"]


def row_key(stage):
    return stage["stage"], stage["variant"], stage["options"]


def merge(into, run):
    into["command"] += "; " + run["command"]
    there = {key(record): record for record in into["records"]}
    for record in run["records"]:
        if key(record) not in there:
            into["records"].append(record)
            continue
        rows = {row_key(stage): stage for stage in there[key(record)]["stages"] + record["stages"]}
        there[key(record)]["stages"] = list(rows.values())


def text(run):
    records = ",\n".join(json.dumps(record, separators=(",", ":")) for record in run.pop("records"))
    head = json.dumps(run, indent=1)
    return head[:-2] + ',\n "records": [\n' + records + "\n]}\n"


def main(out, *paths):
    merged = {}
    for path in sorted(paths):
        run = compact(json.loads(pathlib.Path(path).read_text()))
        name = f'{run["model"]}__q{run["quant"]}.json'
        if name in merged:
            merge(merged[name], run)
        else:
            merged[name] = run
    for name, run in merged.items():
        target = pathlib.Path(out) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text(run))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
