from pathlib import Path

import pytest
import yaml

from moe_beyond.errors import InputError
from moe_beyond.params import Params, load_params
from moe_beyond.settings import Seed, Settings, flatten, parse_params, read_params
from moe_beyond.training.settings import TrainSettings
from moe_beyond.tuning.settings import TuneSettings

ROOT = Path(__file__).parents[1]


class StageParams(Settings):
    """What a stage reads that trains."""

    seed: Seed = 7
    train: TrainSettings = TrainSettings()
    tune: TuneSettings = TuneSettings()


def read(folder, content):
    if content is not None:
        (folder / "params.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return read_params(folder / "params.yaml", StageParams)


def test_a_stage_reads_its_own_sections_and_leaves_the_others_to_theirs(tmp_path):
    found = read(tmp_path, {"seed": 8, "train": {"epochs": 3}, "split": {"nonsense": True}})
    assert (found.seed, found.train.epochs, found.tune) == (8, 3, TuneSettings())
    assert found.train.dropout == TrainSettings().dropout
    assert set(found.model_dump()) == {"seed", "train", "tune"}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"trian": {}}, "params.yaml: trian: unknown parameter; correct its name or remove it"),
        ({"train": {"epoch": 3}}, "params.yaml: train.epoch: unknown parameter; correct its name or remove it"),
        ({"tune": {"trials": 0}}, "tune.trials: Input should be greater than or equal to 1 (found 0)"),
        ({"seed": "seven"}, "seed: Input should be a valid integer"),
        ({"train": {"epochs": "many"}}, "(found 'many')"),
        ({"train": 3}, "params.yaml: train: Input should be a valid dictionary"),
        ({"tune": {"space": {"width": [10], "heads": [4]}}}, "tune.space: width 10 is not divisible by 4 heads"),
        ("seed: [1", "not valid YAML"),
        ("", "expected sections, found NoneType"),
        (None, "not found; run from the project's root"),
    ],
)
def test_a_bad_parameter_is_one_line_that_names_it(tmp_path, raw, message):
    with pytest.raises(InputError) as caught:
        read(tmp_path, raw)
    assert message in str(caught.value)
    assert "params.yaml: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_whole_file_is_checked_section_by_section():
    for source, message in (("hub", "Input should be 'reference', "), ("transformers", "traces.transformers.model is")):
        with pytest.raises(InputError, match=message):
            parse_params({"traces": {"source": source}}, Params, "params.yaml")


def test_params_yaml_holds_known_parameters_with_their_defaults():
    both = (load_params(ROOT / "params.yaml"), Params())
    written, defaults = (flatten(params.model_dump(mode="json")) for params in both)
    # the defaults of the code hold for any model: plain devices of round numbers, all capacities timed. The file names
    # devices that are fits, and times fewer places on more of them
    named = {f"simulate.{name}" for name in ("devices", "headline_device", "timed_capacities", "bandwidths_gb_per_s")}
    # processes that a test does not want to wait for
    named |= {"extract.workers"}
    named |= {"tune.device", "publish.device"}
    assert {name for name in written if written[name] != defaults[name]} == named


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_real_models_parameters_are_known(path):
    assert load_params(path) != Params()


def test_parameters_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Params().seed = 8
