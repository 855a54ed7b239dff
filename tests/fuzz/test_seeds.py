"""What the fuzzer found once stays mended, and the fuzzer still finds what it is made for."""

import shutil

import pytest

from moe_beyond.errors import InputError
from tests.formats.cases import write
from tests.fuzz import predictors, seeds
from tests.fuzz.judge import FINE, Case, judge, made
from tests.fuzz.targets import TARGETS, Target, digest


def whole(target, folder):
    return digest(target.read(write(folder, target.files)))


@pytest.mark.parametrize("path", sorted(seeds.FOLDER.glob("*.zip")), ids=lambda path: path.stem)
@pytest.mark.timeout(30)
def test_a_seed_ends_well(tmp_path, path):
    name, case = seeds.read(path)
    verdict = judge(TARGETS[name], case, whole(TARGETS[name], tmp_path), digest)
    assert verdict.kind in FINE, verdict.detail


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_reads_its_input_and_a_few_damaged_ones(tmp_path, name):
    target = TARGETS[name]
    expected = whole(target, tmp_path)
    assert judge(target, Case("nothing", target.files), expected, digest).kind == "same"
    for number in range(3):
        case = made(name, target, number, seed=7)
        assert case == made(name, target, number, seed=7)
        assert judge(target, case, expected, digest).kind in FINE


def test_no_damaged_predictor_answers_otherwise(tmp_path, exported):
    target = predictors.target(shutil.copytree(exported[0], tmp_path / "predictor"))
    expected = whole(target, tmp_path / "whole")
    for number in range(30):
        assert judge(target, made("predictor", target, number, 0), expected, digest).kind in FINE


def reads(outcome):
    def read(_):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return Target({"a": b"1"}, read)


@pytest.mark.parametrize(
    ("outcome", "done", "kind"),
    [
        ("whole", "bytes", "same"),
        ("another", "bytes", "other"),
        ("another", "key twice", "silently other"),
        (InputError("a: one line"), "bytes", "refused"),
        (InputError("a:\ntwo"), "bytes", "several lines"),
        (ValueError("a"), "bytes", "traceback"),
        (KeyboardInterrupt(), "bytes", "traceback"),
    ],
)
def test_verdicts(outcome, done, kind):
    assert judge(reads(outcome), Case(done, {"a": b"2"}), digest("whole"), digest).kind == kind
