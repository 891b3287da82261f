"""stub"""

from training.report import write_results

RESULTS_TABLE = "results.md"


def write_comparison(out):
    write_results(out)
    return 1
