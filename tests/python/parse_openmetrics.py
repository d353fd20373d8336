"""parse_openmetrics.py TEXT: is it OpenMetrics, and do its histograms add up?

Prints the families as JSON: {name: {"type": .., "unit": .., "samples": [[name, labels, value], ..]}}.
"""

import json
import math
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families


def check_histograms(family):
    series = {}
    for sample in family.samples:
        labels = {key: value for key, value in sample.labels.items() if key != "le"}
        of = series.setdefault(json.dumps(labels, sort_keys=True), {"buckets": []})
        if sample.name.endswith("_bucket"):
            of["buckets"].append((float(sample.labels["le"]), sample.value))
        else:
            of[sample.name.rsplit("_", 1)[1]] = sample.value
    for labels, of in series.items():
        bounds = [bound for bound, _ in of["buckets"]]
        counts = [count for _, count in of["buckets"]]
        if bounds != sorted(set(bounds)) or bounds[-1] != math.inf:
            sys.exit(f"{labels}: bounds {bounds}")
        if counts != sorted(counts) or counts[-1] != of["count"]:
            sys.exit(f"{labels}: counts {counts}, count {of['count']}")
        # All values lie between the bounds of their buckets, the lower one at most 0.79 % less strict.
        least = sum((b - a) * bound for a, b, bound in zip(counts, counts[1:], bounds)) if bounds else 0
        if of["sum"] < least * 0.99:
            sys.exit(f"{labels}: sum {of['sum']} below {least}")


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        text = file.read()
    try:
        families = list(text_string_to_metric_families(text))
    except ValueError as error:
        sys.exit(f"not OpenMetrics: {error}")
    parsed = {}
    for family in families:
        if not family.documentation:
            sys.exit(f"{family.name} has no help")
        if family.type == "histogram":
            check_histograms(family)
        parsed[family.name] = {
            "type": family.type,
            "unit": family.unit,
            "samples": [[s.name, s.labels, s.value] for s in family.samples],
        }
    json.dump(parsed, sys.stdout)


main()
