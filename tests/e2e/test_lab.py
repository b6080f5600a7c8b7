"""scripts/lab, one short phase with pilotlight: the report says what happened. Figures are not judged here."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from harness import ROOT, binary

PROGRAMS = ("caddy", "prometheus")


@pytest.mark.timeout(180)
@pytest.mark.skipif(any(shutil.which(program) is None for program in PROGRAMS), reason="scripts/setup installs them")
def test_the_report_of_one_phase(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "lab", "--phase", "warm", "--seconds", "6", "--out", tmp_path]
    env = {**os.environ, "PILOTLIGHT_BIN": binary()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, env=env)
    assert done.returncode == 0, done.stderr
    [phase] = json.loads((tmp_path / "report.json").read_text())

    heavy, light = phase["calls"]["heavy"], phase["calls"]["light"]
    assert all(ok for *_, ok in heavy + light), phase["failures"]
    assert len(light) == 6 * 20
    # Light calls are never stored; heavy ones are fetched by pilotlight alone, at most once for each refresh.
    assert phase["reached"]["light"] == len(light)
    assert 1 <= phase["reached"]["heavy"] < len(heavy) / 4
    for job in ("django", "pilotlight"):
        scrapes = phase["scrapes"][job]
        assert 5 <= len(scrapes["samples"]) + scrapes["absent"] <= 7
        assert any(kept for _, kept in scrapes["samples"]), job
        assert scrapes["slowest_ms"] > 0
    assert 0 <= phase["scrapes"]["django"]["oldest_s"] < 30
    assert {"Django", "compute service", "Caddy", "pilotlight, warm", "Prometheus"} == set(phase["cpu_s"])
    assert all(seconds > 0 for seconds in phase["cpu_s"].values()), phase["cpu_s"]

    report = (tmp_path / "report.md").read_text()
    assert "| pilotlight, warm |" in report
    assert f"| {phase['reached']['heavy']} / {len(light)} / {phase['reached']['metrics']} |" in report
    for plot in ("lab-story.svg", "lab-alternatives.svg"):
        assert f"({plot})" in report
        assert (tmp_path / plot).read_text().count("<path") >= 2
