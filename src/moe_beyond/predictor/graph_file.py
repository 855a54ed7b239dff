"""Opens the ONNX files of a predictor directory and checks that they are ours, belong together, and get fitting inputs.

A directory holds a file for each step and precision: `token_step.onnx`, `layer_step.onnx`, where the predictor reads
hidden states `hidden_step.onnx`, and the same with `.int8`.
The description that a runtime needs stands in each file's metadata as JSON under one key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from moe_beyond.documents import load_json
from moe_beyond.errors import InputError, reason_of
from moe_beyond.predictor.onnx_nodes import refusal

Step = Literal["token_step", "layer_step", "hidden_step"]
Precision = Literal["fp32", "int8"]
STEPS: tuple[Step, ...] = ("token_step", "layer_step")
"""Of every predictor."""
HIDDEN_STEP: Step = "hidden_step"
"""The layer step with what a router read, of a predictor that reads hidden states."""

METADATA_KEY = "moe_beyond"
FORMAT_VERSION = 4
OLDEST_VERSION = 3
"""Read too: without hidden states nothing has changed since."""
LEAST_ONNXRUNTIME = "1.18"
"""The oldest release that opens what the export stage writes by default (ONNX IR 10, opset 20); CI runs it."""

# onnxruntime's own are exceptions of their own: RuntimeError is not above them
_REFUSALS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)
# of onnxruntime's message, what follows its own file names and functions
_SAYS = re.compile(r"(Unsupported model IR version|Opset \d+ is|Current official support).*", re.DOTALL)


class Description(BaseModel):
    """What a file's metadata say of it. All steps of a fit agree in all but the last two."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[3, 4]
    step: Step
    fit: str = Field(pattern=r"^[0-9a-f]{16}$")
    """Digest of the weights of all steps."""
    model_id: str = Field(min_length=1, max_length=1000)
    layer_numbers: tuple[Annotated[int, Field(ge=0, le=100_000)], ...] = Field(min_length=1, max_length=10_000)
    num_experts: int = Field(ge=2, le=65_536)
    top_k: int = Field(ge=1, le=65_536)
    horizon: int = Field(ge=1, le=10_000)
    window: int = Field(ge=1, le=1_000_000)
    depth: int = Field(ge=1, le=1_000)
    width: int = Field(ge=1, le=1_000_000)
    layer_width: int = Field(ge=1, le=1_000_000)
    reach: int = Field(ge=1, le=10_000)
    hidden_size: int = Field(default=0, ge=0, le=1_000_000)
    """Of the traced model, where its hidden states are read."""
    hidden_horizon: int = Field(default=1, ge=1, le=10_000)
    """Layers ahead that the hidden step predicts."""
    features: str = Field(max_length=1000)
    letter_buckets: int | None = Field(default=None, ge=2, le=2**31)
    known_tokens: tuple[str, ...] | None = Field(default=None, max_length=10_000_000)
    """Strings that have a row of their own in the embedding; as `letter_buckets`, of the token step alone."""

    @model_validator(mode="after")
    def _layers_and_experts_are_possible(self) -> Self:
        if list(self.layer_numbers) != sorted(set(self.layer_numbers)):
            raise ValueError("layer_numbers must rise without repetition")
        if self.top_k > self.num_experts:
            raise ValueError("top_k exceeds num_experts")
        if self.step == "token_step" and (self.letter_buckets is None or self.known_tokens is None):
            raise ValueError("letter_buckets and known_tokens are missing")
        return self


def graph_file(step: Step, precision: Precision = "fp32") -> str:
    """Name of a step's file in a predictor directory."""
    return f"{step}.onnx" if precision == "fp32" else f"{step}.{precision}.onnx"


class GraphFile:
    """One step, opened.

    Attributes:
        path: The file.
        description: Its metadata.
        outputs: Names of what `run` gives.
    """

    def __init__(self, path: Path, data: bytes, step: Step, threads: int) -> None:
        """Open the file.

        Args:
            path: Its name in messages.
            data: Its bytes.
            step: What it must hold.
            threads: Of onnxruntime.

        Raises:
            InputError: Not an ONNX file, one whose graph the export stage cannot have written, one of an IR or opset
                that onnxruntime does not know, or one without our metadata, of another step or release.
        """
        try:
            refused = refusal(data)
        except ValueError as error:
            raise InputError(f"{path}: not an ONNX file ({error}); export it again") from error
        if refused:
            raise InputError(f"{path}: {refused}; use a file that the export stage wrote")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = ort.InferenceSession(
                # without a second attempt, which onnxruntime would announce on stdout
                data,
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,
            )
        except _REFUSALS as error:
            raise InputError(_refusal(path, str(error))) from error
        self.path, self.description = path, _read_description(path, self.session)
        if self.description.step != step:
            raise InputError(f"{path}: holds the {self.description.step}, expected the {step}; export it again")
        self._sizes = {node.name: node.shape for node in self.session.get_inputs()}
        self.outputs = [node.name for node in self.session.get_outputs()]
        self._accepted: tuple[tuple[int, ...], ...] = ()

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[np.float32]]:
        """The graph's outputs, in its order.

        Raises:
            InputError: An input, such as a state of another predictor, has the wrong shape, or the graph cannot run.
        """
        shapes = tuple(value.shape for value in inputs.values())
        if shapes != self._accepted:  # a decode loop has the same shapes again and again
            self._check(inputs)
            self._accepted = shapes
        try:
            return list(self.session.run(self.outputs, inputs))
        except _REFUSALS as error:
            raise InputError(f"{self.path}: the graph cannot run ({reason_of(error)}); export it again") from error

    def _check(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, expected in self._sizes.items():
            found = inputs[name].shape
            fits = [not isinstance(e, int) or e == f for e, f in zip(expected, found, strict=False)]
            if len(found) != len(expected) or not all(fits):
                shown = " x ".join(str(size) for size in expected)
                raise InputError(f"{self.path}: {name} has shape {found}, expected {shown}; use this predictor's state")


def _refusal(path: Path, message: str) -> str:
    if found := _SAYS.search(message):
        return (
            f"{path}: too new for onnxruntime {ort.__version__} ({reason_of(found[0])}); install a newer one: what the "
            f"export stage writes by default needs {LEAST_ONNXRUNTIME} or later"
        )
    reason = f"not an ONNX file that onnxruntime {ort.__version__} can open ({reason_of(message)})"
    return f"{path}: {reason}; export it again"


def _read_description(path: Path, session: ort.InferenceSession) -> Description:
    properties = session.get_modelmeta().custom_metadata_map
    if METADATA_KEY not in properties:
        raise InputError(f"{path}: no {METADATA_KEY!r} metadata; use a file that the export stage wrote")
    try:
        raw: dict[str, Any] = load_json(properties[METADATA_KEY], str(path))
        version = int(raw["format_version"])
    except (ValueError, OverflowError, LookupError, TypeError) as error:
        raise InputError(f"{path}: the {METADATA_KEY!r} metadata are damaged; export it again") from error
    if not OLDEST_VERSION <= version <= FORMAT_VERSION:
        newer = f"newer than this release, which reads {FORMAT_VERSION}; upgrade moe-beyond"
        age = newer if version > FORMAT_VERSION else "of an older release; export it again"
        raise InputError(f"{path}: format version {version} is {age}")
    try:
        return Description.model_validate_json(properties[METADATA_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path}: the {METADATA_KEY!r} metadata are damaged ({where}: {first['msg']}); export it again"
        ) from error
