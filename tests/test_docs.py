"""The README says what runs said: its figures are written from committed documents, and these agree with metrics."""

import json
import re
import subprocess

import pytest

from docs import figures, generate
from moe_beyond.devices.device import load_device

ROOT = generate.ROOT
RUNS = [*generate.RUNS]


@pytest.fixture(params=RUNS)
def found(request):
    return generate.read(request.param)


def committed(path):
    """A file as committed: a run on another processor may have changed it here."""
    shown = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    if shown.returncode:
        pytest.skip(f"not a git checkout that holds {path}: {shown.stderr.strip()}")
    return shown.stdout


def test_the_list_of_parameters_is_current():
    assert (ROOT / "docs/parameters.md").read_text() == generate.parameters(), "run `make docs`"


def test_the_readme_holds_the_committed_figures():
    text = (ROOT / "README.md").read_text()
    assert generate.filled_readme(text) == text, "run `make docs`"
    assert len(re.findall("<!-- figures", text)) == len(RUNS) + 2


def test_the_page_of_the_card_says_what_the_command_says():
    text = (ROOT / "docs/card.md").read_text()
    assert generate.filled_card(text) == text, "run `make docs`"


def test_the_table_of_sizes_is_what_was_measured():
    text = (ROOT / "docs/beyond-one-machine.md").read_text()
    assert generate.filled_sizes(text) == text, "run `make docs`"
    assert "<!-- figures sizes -->" in text


def test_the_committed_figures_are_those_of_the_run_whose_metrics_are_committed():
    shown, metrics = generate.read("default"), json.loads(committed("reports/simulate/metrics.json"))
    tables = {f"reports/{stage}/tables" for stage in ("export", "simulate", "verify")}
    assert set(shown["outs"]) == {"models/predictor", *tables}
    lru, best, ours, bound = shown["devices"]["phone_oneplus_15r"]
    for name, value in {
        "lru_ms_per_token": lru["ms_per_token"],
        "best_without_predictor_ms_per_token": best["ms_per_token"],
        "bound_ms_per_token": bound["ms_per_token"],
        **{name: ours[name] for name in ("ms_per_token", "hit_rate", "mib_per_token", "token_step_ms", "gap_closed")},
    }.items():
        assert metrics[name]["value"] == pytest.approx(value, rel=1e-9), f"{name}: run `make repro`, then `make docs`"


def test_every_row_with_a_predictor_is_charged_no_less_than_was_measured(found):
    measured, charged = found["latency"]["measured"], found["latency"]["charged"]
    assert all(charged[name] >= measured[name] > 0 for name in measured)
    rows = {device: [row for row in rows if row.get("token_step_ms")] for device, rows in found["devices"].items()}
    assert all(rows.values())
    for device, of_device in rows.items():
        slowdown = load_device(device).predictor_slowdown
        for row in of_device:
            step = "table_ms" if row["predictor"] != "predictor" else "token_step_ms"
            assert row["token_step_ms"] >= measured[step] * slowdown
            assert row["layer_step_ms"] == 0 or row["layer_step_ms"] >= measured["layer_step_ms"] * slowdown


def test_what_the_readme_claims_of_the_paper_is_so():
    """Both predictions in every row, through the same cache, and the paper's own replay among the rows."""
    paper = generate.read("deepseek")["paper"]
    assert {row["cache"] for row in paper} == set(figures.CACHES)
    for row in paper:
        gain = row["ours_hit_rate"] - row["paper_hit_rate"]
        assert row["difference_hit_rate"] == pytest.approx(gain, abs=1e-6)
        assert row["difference_hit_rate_low"] <= gain <= row["difference_hit_rate_high"]
        assert row["ours_mib_per_token"] > 0 and row["paper_mib_per_token"] > 0


def test_the_spread_is_that_of_three_seeds_and_holds_the_shown_run():
    document, shown = generate.read("spread"), json.loads(committed("reports/simulate/metrics.json"))
    assert len(document["seeds"]) == 3
    if document["note"]:
        pytest.skip(f"the README says of which release it is: {document['note']}; run python -m scripts.spread")
    for name, value in document["seeds"]["7"].items():
        assert value == pytest.approx(shown[name]["value"], rel=1e-12)


def test_the_readme_counts_policies_where_a_page_does_and_nowhere_else():
    """Numbers that are written by hand grow old: one place said 39, another 31."""
    prose = re.sub(r"<!-- figures .*?<!-- /figures", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert not re.findall(
        r"(?:\d+|\w+-?(?:one|two|three|four|five|six|seven|eight|nine|ty)) (?:cache )?policies", prose
    )


def test_every_file_and_command_that_the_readme_names_exists():
    readme = (ROOT / "README.md").read_text()
    for path in re.findall(r"\]\((docs/[^)]+)\)", readme):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", readme)) <= targets
