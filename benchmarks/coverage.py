"""How often a 95% interval of a report holds the truth: simulated, 1,000 reports for each row.

    python benchmarks/coverage.py [-o benchmarks/results/coverage.json]

Rates: k of n drawn binomially. Clopper-Pearson is exact, so under 95% only by the luck of the draw, and over it by what
whole numbers cost: at a rate of 1% most reports count 0 to 6. Means: a skewed drift (gamma, shape 2), of as few as
may be retained, and of as many as there are flags.
"""

import argparse
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from kept import write

from hotfix.intervals import Rate, interval

REPORTS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    args = parser.parse_args()
    draw, rows = np.random.default_rng(0), []
    for n in (75, 300, 1000):
        for rate in (0.0, 0.01, 0.1, 0.5, 0.9, 0.99):
            found = [Rate.of(int(k), n) for k in draw.binomial(n, rate, REPORTS)]
            both = sum(one.low <= rate <= one.high for one in found) / REPORTS
            upper = sum(rate <= one.upper for one in found) / REPORTS
            rows.append({"of": "rate", "n": n, "truth": rate, "two-sided": both, "upper bound": upper})
    for n in (16, 64, 258):
        ends = [interval(draw.gamma(2.0, 0.005, n)) for _ in range(REPORTS)]
        both = sum(low <= 0.01 <= high for low, high in ends) / REPORTS
        rows.append({"of": "mean", "n": n, "truth": 0.01, "two-sided": both})
    for row in rows:
        print(row)
    write(args.out, {"date": datetime.now(UTC).date().isoformat(), "reports": REPORTS, "rows": rows})


if __name__ == "__main__":
    main()
