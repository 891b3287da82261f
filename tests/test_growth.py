"""python -m pytest tests/test_growth.py"""

import pytest
from test_bench_index import table

from benchmarks.growth import bench_index


@pytest.mark.parametrize("frames", [3000, 20_000])
def test_a_collection_that_grows_finds_what_is_nearest(tmp_path, capsys, frames):
    bench_index(frames=str(frames), films="10,20", folder=tmp_path)
    rows = table(capsys.readouterr().out)
    found = dict(zip(("search", "recall"), rows[f"index.py, {frames:,} stills"], strict=False))
    assert float(found["search"]) > 0 and float(found["recall"]) == 1 and not list(tmp_path.iterdir())
    assert float(rows["20 films"][0].split()[0]) > 0
