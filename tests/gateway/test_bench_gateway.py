"""`make bench-gateway` works: everybody starts, all that was answered is stored."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(
    not shutil.which("wrk") and os.geteuid() != 0, reason="needs wrk: apt-get install wrk"
)
def test_the_quick_benchmark_measures_and_loses_nothing() -> None:
    command = [sys.executable, "benchmarks/gateway.py", "--quick", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if "There is no wrk" in done.stderr:
        pytest.skip("wrk could not be installed")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["capture"]["sent_minus_stored"] == 0
    assert found["capture"]["stored"] >= found["capture"]["answered"] > 0
    assert found["capture"]["log_lines"] >= found["capture"]["answered"]
    for case in ("c=1 plain", "c=1 stream", "c=16 plain", "c=16 stream"):
        for side in ("mock", "trueup"):
            one = found["sides"][side][case]
            assert one["rate"] > 0 and 0 < one["p50_ms"] <= one["p99_ms"]
        # a gateway that added nothing would not have been asked
        assert 0 < found["ratios"][case]["share_of_rate"] < 1
        assert found["ratios"][case]["added_p50_ms"] > 0
