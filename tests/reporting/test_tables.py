from pathlib import Path

import pytest

from moe_beyond.errors import InputError
from moe_beyond.reporting.tables import LAYOUT, Tables, read_tables

REPLAY = LAYOUT["replay"][0]


def write(root: Path, relative: str, text: str) -> None:
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_reads_every_table_of_a_complete_project(tables: Tables):
    assert {name for name in LAYOUT if tables[name].frame is None} == set()
    assert tables.splits == ["test_in_domain", "test_out_of_domain"]
    assert tables.policies[0] == tables.learned_policy == "predictor_prefetch_lru"
    assert tables.policies[-1] == "belady"
    assert tables.predictors[0] == tables.learned_predictor == "predictor"
    assert (tables.token_cycle, tables.model_experts) == (30, 320)


def test_spells_predictors_as_the_policies_do(tables: Tables):
    assert "token_unigram" in tables.predictors
    assert "token unigram" not in tables.predictors


def test_an_expert_is_as_large_as_the_bytes_that_a_miss_moved(tables: Tables):
    assert tables.expert_mib == pytest.approx(36_864 / 2**20)


def test_times_are_read_at_the_latency_that_export_measured(tables: Tables):
    # export measured 0.52 ms; 0.1 and 5 were modelled
    assert (tables.latency_ms, tables.modelled_latency_ms) == (0.52, 0.1)
    assert tables.times is not None
    assert tables.times["predictor_ms"].unique().to_list() == [0.1]
    assert tables.times.height == tables["timing"].rows.height // 2


def test_an_empty_project_has_a_reason_for_every_table(tmp_path: Path):
    tables = read_tables(tmp_path)
    for name, (path, _) in LAYOUT.items():
        assert tables[name].frame is None
        assert tables[name].absent == f"{path} was not written"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", f"{REPLAY} is empty"),
        ("split,policy\nx,lru\n", f"{REPLAY} has no column capacity_experts"),
        (",".join(LAYOUT["replay"][1]) + "\n", f"{REPLAY} has no rows"),
    ],
)
def test_a_table_that_says_nothing_is_absent_with_its_reason(tmp_path: Path, text: str, reason: str):
    write(tmp_path, REPLAY, text)
    assert read_tables(tmp_path)["replay"].absent == reason


def test_text_among_numbers_is_refused_with_file_column_and_value(tmp_path: Path):
    write(tmp_path, "reports/assess/reuse_distances.csv", "distance,cumulative_share\n1,0.2\n2,many\n")
    with pytest.raises(InputError, match=r"reports/assess/reuse_distances\.csv: column cumulative_share: found 'many'"):
        read_tables(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_broken_card_is_refused_by_name(tmp_path: Path, text: str):
    write(tmp_path, "reports/assess/card.json", text)
    with pytest.raises(InputError, match=r"reports/assess/card\.json: "):
        read_tables(tmp_path)


def test_bytes_that_are_no_text_are_refused_in_one_line(tmp_path: Path):
    path = tmp_path / REPLAY
    path.parent.mkdir(parents=True)
    path.write_bytes(b"split,policy\n\xff\xfe\x00,\x80\n")
    with pytest.raises(InputError) as error:
        read_tables(tmp_path)
    assert REPLAY in str(error.value)
    assert "\n" not in str(error.value)


def test_a_column_that_was_not_measurable_is_empty_and_no_fault(tmp_path: Path):
    path, columns = LAYOUT["cards"]
    cells = ["a" if kind == "text" else "1" for kind in columns.values()]
    cells[list(columns).index("working_set_64_fraction")] = ""
    write(tmp_path, path, f"{','.join(columns)}\n{','.join(cells)}\n")
    cards = read_tables(tmp_path)["cards"].rows
    assert cards["working_set_64_fraction"].to_list() == [None]
    assert cards["gini"].to_list() == [1]
