import json

import pytest

from moe_beyond.errors import InputError
from moe_beyond.files import folder_digest
from moe_beyond.registry.bundle import mismatch, read_manifest, registered_name
from moe_beyond.registry.settings import PublishSettings
from tests.registry.bundles import small_bundle, small_project
from tests.reporting.example import POLICIES
from tests.traces_of_chance import chance_trace


def test_a_bundle_holds_all_that_belongs_to_a_predictor(tmp_path, exported):
    small_project(tmp_path, exported[0])
    manifest = small_bundle(tmp_path / "bundle", tmp_path, chance_trace())
    documents = "README.md bundle.json advice.json metrics.json window.npz window.json calibration.csv quality.csv"
    assert {file.name for file in (tmp_path / "bundle").iterdir()} == {"predictor", *documents.split()}
    assert folder_digest(tmp_path / "bundle/predictor") == folder_digest(exported[0])
    assert read_manifest(tmp_path / "bundle") == manifest
    assert (manifest["tokens"]["letter_buckets"], manifest["digests"]) == (64, {"data/traces": "abc.dir"})
    card = (tmp_path / "bundle/README.md").read_text()
    for words in (
        "chance",
        "| test_in_domain | 80.0% | 70.0% | 20.0% |",
        "onnxruntime 1.18 or later",
        "changes that were not committed",
        "**go**",
    ):
        assert words in card
    advice = json.loads((tmp_path / "bundle/advice.json").read_text())
    # a row a split and policy at the nearest capacity, the fastest first; no bound
    policies = [row["policy"] for row in advice["policies"]]
    assert set(policies) == set(POLICIES) - {"belady"}
    assert policies == 2 * sorted(set(policies), key=lambda policy: POLICIES[policy][-1])
    assert advice["capacity_experts"] == 16
    # a lossy policy is fast and no rival
    assert "| Predictor: prefetch, predicted eviction | 38 | 11.0% | 0.2 and 0.05 |" in card
    assert "MoTE" not in card
    small_bundle(tmp_path / "other", tmp_path, chance_trace(), PublishSettings(device="gpu_pcie4"))
    card = (tmp_path / "other/README.md").read_text()
    assert "Policies were not timed on gpu_pcie4: add it to simulate.devices." in card


def test_names_newer_layouts_and_other_shapes_are_said_in_words(tmp_path):
    assert registered_name(PublishSettings(), "org/Some Model:v1") == "moe-beyond.org-Some-Model-v1.laptop_nvme"
    assert registered_name(PublishSettings(name="mine"), "org/model") == "mine"
    (tmp_path / "bundle.json").write_text('{"bundle_version": 99}')
    with pytest.raises(InputError, match=r"bundle version 99, this release reads up to .*; upgrade moe-beyond$"):
        read_manifest(tmp_path)
    for damaged in ("{", "[]", "{}", '{"bundle_version": "new"}'):
        (tmp_path / "bundle.json").write_text(damaged)
        with pytest.raises(InputError, match="damaged, no bundle version in it"):
            read_manifest(tmp_path)
    with pytest.raises(InputError, match="this is no bundle"):
        read_manifest(tmp_path / "elsewhere")
    meta = chance_trace().metadata
    manifest = {"model_id": "chance", "layer_numbers": [1, 2, 3], "num_experts": 16, "top_k": 2}
    assert mismatch(manifest, meta) is None
    assert mismatch(manifest | {"num_experts": 8}, meta) == (
        "the champion was made for chance, 3 layers of 8 experts, top-2; "
        "these traces are of chance, 3 layers of 16 experts, top-2"
    )
