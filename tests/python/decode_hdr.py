"""decode_hdr.py OVERHEAD_JSON: do all `hdr` payloads hold the numbers that stand beside them?

Prints how many payloads there were.
"""

import json
import math
import sys

from hdrh.histogram import HdrHistogram

QUANTILES = {"p50": (1, 2), "p90": (9, 10), "p99": (99, 100), "p999": (999, 1000)}


def value_at(histogram, share, of):
    # This library rounds the rank to the nearest, the definition (and Java's, and Rust's) rounds up. Asking for
    # the exact share of a whole rank makes both the same.
    rank = max(1, -(-histogram.total_count * share // of))
    return histogram.get_value_at_percentile(100 * rank / histogram.total_count)


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        hops = json.load(file)["hops"]
    for hop in hops:
        scope = "/".join(str(hop[key]) for key in ("proxy", "pid", "direction", "segment"))
        histogram = HdrHistogram.decode(hop["hdr"])
        shape = (
            histogram.lowest_trackable_value,
            histogram.highest_trackable_value,
            histogram.significant_figures,
        )
        if shape != (1, 60_000_000_000, 2):
            sys.exit(f"{scope}: configuration {shape}")
        decoded = {"count": histogram.total_count}
        for name, (share, of) in QUANTILES.items():
            decoded[name] = value_at(histogram, share, of)
        written = {name: hop[name] for name in decoded}
        if decoded != written or any(type(value) is not int for value in written.values()):
            sys.exit(f"{scope}: decoded {decoded}, written {written}")
        if not math.isclose(histogram.get_mean_value(), hop["mean"], rel_tol=0.01):
            sys.exit(f"{scope}: mean {histogram.get_mean_value()}, written {hop['mean']}")
    print(len(hops))


main()
