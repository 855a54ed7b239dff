from pathlib import Path

import pytest
import yaml

from moe_beyond.errors import InputError
from moe_beyond.params import Params, load_params, parse_params
from moe_beyond.settings import flatten

ROOT = Path(__file__).parents[1]


def test_params_yaml_lists_every_parameter_with_its_default():
    written = flatten(yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert written == flatten(Params().model_dump(by_alias=True, mode="json"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"train": {"epoch": 3}}, "train.epoch: unknown parameter"),
        ({"trian": {}}, "trian: unknown parameter"),
        ({"tune": {"trials": 0}}, "tune.trials: Input should be greater than or equal to 1 (found 0)"),
        ({"seed": "seven"}, "seed: Input should be a valid integer"),
        ({"traces": {"source": "hub"}}, "traces.source: Input should be 'reference', 'transformers' or 'import'"),
        ({"tune": {"space": {"width": [10], "heads": [4]}}}, "tune.space: width 10 is not divisible by 4 heads"),
        ({"traces": {"source": "transformers"}}, "traces.transformers.model is empty"),
    ],
)
def test_a_bad_parameter_is_named_with_the_mend(raw, message):
    with pytest.raises(InputError) as caught:
        parse_params(raw, "params.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_broken_files_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="not found"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("seed: [1")
    with pytest.raises(InputError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- 1")
    with pytest.raises(InputError, match="expected sections"):
        load_params(tmp_path / "params.yaml")


def test_parameters_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Params().seed = 8  # type: ignore[misc]
