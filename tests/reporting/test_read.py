import polars as pl
import pytest

from moe_beyond.cells import guarded
from moe_beyond.errors import InputError
from tests.reporting.conftest import html_of, run_of
from tests.reporting.example import BEST, OURS


def files(root):
    found = [*root.glob("reports/*/*.json"), *root.glob("reports/*/*.csv"), *root.glob("reports/*/tables/*")]
    inputs = {path for path in found if path.name != "latency.json" and "figures" not in path.parts}
    return sorted({*inputs, root / "data/splits/prompts.csv"})


def test_each_missing_file_is_an_error_that_names_the_stage_to_run(copy):
    for path in files(copy):
        folder, stage, *_ = path.relative_to(copy).parts
        content = path.read_bytes()
        path.unlink()
        stage = "split" if folder == "data" else stage
        with pytest.raises(InputError, match=rf"{path.name}: not found; .*: dvc repro {stage}$"):
            run_of(copy)
        path.write_bytes(content)
    assert len(files(copy)) == 34


def test_no_run_measures_or_receipts_are_read(copy):
    before = html_of(copy)
    (copy / "reports/export/latency.json").unlink()
    (copy / "reports/train/run.json").write_text('{"run_id": "0123456789abcdef"}')
    assert html_of(copy) == before


def test_prompts_that_a_spreadsheet_would_compute_are_read_as_they_were_called(copy):
    path = copy / "data/splits/prompts.csv"
    table = pl.read_csv(path, infer_schema=False)
    domain = table["domain"][0]
    table.with_columns(pl.col("domain").replace(domain, guarded("=1+1"))).write_csv(path)
    assert run_of(copy).prompts["domain"].to_list() == table["domain"].replace(domain, "=1+1").to_list()


def test_the_page_leads_with_the_last_split_and_the_headlines_device(run, rendered):
    assert run.splits == ["test_out_of_domain", "test_in_domain"]
    assert run.devices == ["laptop_nvme", "phone_ufs"]
    assert (run.places[0], run.capacity) == (("test_out_of_domain", "laptop_nvme"), 16)
    assert run_of(rendered, headline_device=None).devices == ["phone_ufs", "laptop_nvme"]
    assert run_of(rendered, headline_capacity=0.5).capacity == 80


def test_a_split_without_times_does_not_lead(copy):
    for name in ("on_device", "pays"):
        path = copy / f"reports/simulate/tables/{name}.parquet"
        pl.read_parquet(path).filter(split="test_in_domain").write_parquet(path)
    run = run_of(copy)
    assert run.splits == ["test_in_domain", "test_out_of_domain"]
    assert run.places == [("test_in_domain", "laptop_nvme"), ("test_in_domain", "phone_ufs")]
    assert "Laptop, NVMe (no recording), 16 experts" in html_of(copy)


def test_the_contenders_are_those_that_the_table_marks(run):
    contest = run.contest("test_in_domain", "phone_ufs")
    assert (contest.lru["policy"], contest.best["policy"]) == ("lru", BEST)
    assert (contest.ours["policy"], contest.ours["capacity_experts"]) == (OURS, 16)
    # from the table `pays`, of the policy that it speaks of
    assert (contest.ours["break_even_token_step_ms"], contest.best["break_even_token_step_ms"]) == (4.5, None)


def test_only_parameters_of_the_source_that_was_used_are_shown(run, rendered):
    assert run.parameters["simulate.timed_expert_mib"] == 8.25
    assert not [name for name in run.parameters if name.startswith(("traces.import", "traces.transformers"))]
    # other models are timed as they are
    imported = run_of(rendered, source="import")
    assert imported.settings.timed_expert_mib is None
    assert imported.parameters["traces.import.format"] == "moe-beyond-csv"
