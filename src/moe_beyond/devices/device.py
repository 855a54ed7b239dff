"""What a device does in how much time: a small YAML each under `profiles/`, or anywhere. see docs/devices.md."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import Field, ValidationError, model_validator

from moe_beyond.devices.link_curve import Point, complaint, read_ms, with_bandwidth
from moe_beyond.documents import read_plain
from moe_beyond.errors import InputError
from moe_beyond.settings import Settings
from moe_beyond.yaml_documents import load_yaml

MILLISECONDS = 1e3
WRITTEN = "# written by moe-beyond"
LARGE_ERROR = 0.1
"""A fit's error from which on something beside loading and computing decides."""
NO_RECORDING = "No recording backs this device: how far its times are off is not known."
Amount = TypeVar("Amount", float, npt.NDArray[np.float64])


class Device(Settings):
    """A link that experts come through, and a processor that uses them.

    Decoding reads every weight it uses once, so the processor's time is bytes over the bandwidth of its own memory.
    """

    name: str = Field(min_length=1)
    about: str = Field(min_length=1)
    """What it stands for, and where the numbers come from."""
    link_gb_per_s: float = Field(gt=0)
    """Sustained bandwidth of the link, 10^9 bytes a second."""
    setup_us: float = Field(ge=0)
    """Time from a request to its first byte."""
    lanes: int = Field(ge=1)
    """Requests under way at once: they hide each other's setup, and share the bandwidth."""
    link_curve: tuple[Point, ...] = ()
    """KiB of a read, lanes, and GB/s of all lanes together: an expert's load takes what this curve says of its size at
    `lanes`; empty: `setup_us` and `link_gb_per_s` describe the link."""
    memory_gb_per_s: float = Field(gt=0)
    """Bandwidth at which the processor reads resident weights."""
    layer_overhead_us: float = Field(ge=0)
    """Time of a layer that does not depend on its weights: launches, routing, synchronisation."""
    token_overhead_us: float = Field(default=0.0, ge=0)
    """Time of a token outside its layers: embedding, output head, choosing the next token. Nothing is prefetched in it:
    the next token is not known yet."""
    miss_layer_us: float = Field(default=0.0, ge=0)
    """Time that a layer waits beside its loads where it loads anything: handing over requests, synchronisation."""
    admit_gb_per_s: float | None = Field(default=None, gt=0)
    """Bandwidth at which the processor copies a loaded expert into the cache; null: it is read right into it."""
    overlap: bool = False
    """Whether a layer's experts compute, one after another, while others of it still load."""
    miss: Literal["load", "compute", "sooner"] = "load"
    """What becomes of a missing expert: it is loaded and then computed; or the host's processor computes it from slow
    memory, beside the accelerator, and it is copied in the background; or whichever is done sooner."""
    cpu_gb_per_s: float | None = Field(default=None, gt=0)
    """Bandwidth at which the host's processor reads the missing experts that it computes."""
    fault_gb_per_s: float | None = Field(default=None, gt=0)
    """Bandwidth at which page faults bring dense weights that do not stay in memory, all of them for each token; null:
    they stay. With `memory_gib`: only where cache and dense weights together exceed it."""
    page_gb_per_s: float | None = Field(default=None, gt=0)
    """Bandwidth at which an expert is read that lies in the operating system's page cache, which has what is left of
    `memory_gib` beside the cache and the dense weights; null: reads go past the page cache."""
    prefill_tokens_per_s: float | None = Field(default=None, gt=0)
    """Rate at which the processor computes a prompt whose weights are all there, where that takes longer than reading
    them once; null: only reading takes time."""
    prompt_overhead_ms: float = Field(default=0.0, ge=0)
    """Time of a prompt beside its tokens and its loads: the request, the first launch."""
    start_gb_per_s: float | None = Field(default=None, gt=0)
    """All weights of the model over the time in which the engine starts, from the command until it takes a prompt;
    null: not known."""
    predictor_slowdown: float = Field(default=1.0, gt=0)
    """How many times longer the predictor takes on this device's processor than on the one that export timed it on."""
    predictor_slowdown_source: str = "assumed: as fast as the processor that export timed the predictor on"
    fit_error: float | None = Field(default=None, ge=0)
    """Of a device fitted to recordings: by which share a fit to one part of them missed the mean time of the rest."""
    recording: str | None = None
    """Repository, commit, file and date of what it was fitted to; null: no recording backs it."""
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Fitted number -> its 95 % interval, from drawing the recording's tokens, or its runs, again."""
    heat_range: tuple[float, float] | None = None
    """Fastest and slowest recorded runs of one configuration, over their mean: what heat alone changes."""
    resident_mib: float | None = Field(default=None, gt=0)
    """Of such a device: MiB of resident weights that a token of the recording read, experts and dense parts."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Fast memory for weights, of which the cache is a part; null where it is not known."""

    @model_validator(mode="after")
    def _computes_with_a_known_bandwidth(self) -> Device:
        if self.miss != "load" and self.cpu_gb_per_s is None:
            raise ValueError(f"miss: {self.miss} needs cpu_gb_per_s")
        return self

    @model_validator(mode="after")
    def _pages_lie_in_memory_of_a_known_size(self) -> Device:
        if self.page_gb_per_s is not None and (self.memory_gib is None or self.miss != "load"):
            raise ValueError("page_gb_per_s needs memory_gib, and miss: load; give both, or leave it out")
        return self

    @model_validator(mode="after")
    def _larger_reads_take_longer(self) -> Device:
        if (wrong := complaint(self.link_curve, self.lanes)) is not None:
            raise ValueError(f"link_curve: {wrong}")
        return self

    @property
    def depends_on_memory(self) -> bool:
        """Whether a larger cache takes something away: the page cache, or memory for dense weights."""
        return self.memory_gib is not None and (self.page_gb_per_s or self.fault_gb_per_s) is not None

    def memory_left(self, held_bytes: float) -> float:
        """Bytes of memory beside so many that are held, negative where they do not fit; infinite where not known."""
        return np.inf if self.memory_gib is None else self.memory_gib * 2**30 - held_bytes

    def holding(self, held_bytes: float) -> Device:
        """The device with a cache and dense weights of so many bytes: dense weights that fit do not fault."""
        fits = self.memory_gib is not None and self.memory_left(held_bytes) >= 0
        return self.model_copy(update={"fault_gb_per_s": None}) if fits else self

    def transfer_ms(self, num_bytes: Amount) -> Amount:
        """Milliseconds that the link is busy with one expert of this size, or with one of each of several sizes.

        That is its bytes over the bandwidth, and the setup over the lanes, or what `link_curve` says.
        """
        if self.link_curve:
            ms = read_ms(self.link_curve, self.lanes, np.asarray(num_bytes, np.float64))
            return ms if isinstance(num_bytes, np.ndarray) else float(ms)
        return num_bytes / (self.link_gb_per_s * 1e9) * MILLISECONDS + self.setup_us / self.lanes / 1e3

    def with_link(self, gb_per_s: float) -> Device:
        """The device with a link of another bandwidth."""
        curve = with_bandwidth(self.link_curve, self.link_gb_per_s, gb_per_s)
        return self.model_copy(update={"link_gb_per_s": gb_per_s, "link_curve": curve})

    def page_ms(self, num_bytes: Amount) -> Amount:
        """Milliseconds in which an expert of this size is read from the page cache."""
        return num_bytes / ((self.page_gb_per_s or np.inf) * 1e9) * MILLISECONDS

    def read_ms(self, num_bytes: Amount) -> Amount:
        """Milliseconds in which the processor reads this many resident bytes."""
        return num_bytes / (self.memory_gb_per_s * 1e9) * MILLISECONDS

    def admit_ms(self, num_bytes: Amount) -> Amount:
        """Milliseconds in which the processor copies this many loaded bytes into the cache."""
        return num_bytes / ((self.admit_gb_per_s or np.inf) * 1e9) * MILLISECONDS

    def cpu_ms(self, num_bytes: Amount) -> Amount:
        """Milliseconds in which the host's processor computes experts of this many bytes that are missing."""
        return num_bytes / ((self.cpu_gb_per_s or np.inf) * 1e9) * MILLISECONDS

    def prefill_ms(self, num_tokens: Amount) -> Amount:
        """Milliseconds that computing so many tokens of a prompt takes at least."""
        return num_tokens / (self.prefill_tokens_per_s or np.inf) * MILLISECONDS

    def start_ms(self, num_bytes: int) -> float | None:
        """Milliseconds in which the engine starts with a model of so many bytes; None where that is not known."""
        return None if self.start_gb_per_s is None else num_bytes / (self.start_gb_per_s * 1e9) * MILLISECONDS

    def dense_ms(self, num_bytes: Amount) -> Amount:
        """Milliseconds in which the processor reads this many dense bytes, from memory or by page faults."""
        return num_bytes / ((self.fault_gb_per_s or self.memory_gb_per_s) * 1e9) * MILLISECONDS


def known_devices() -> list[str]:
    """Names of the devices that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))


def load_device(name: str) -> Device:
    """A device of the package by its name, or of a YAML file by its path, which ends in .yaml or .yml.

    Raises:
        InputError: Unknown name, no such file, or a file that is not YAML or breaks the model.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        try:
            return _parse(path.stem, read_plain(path), name)
        except OSError as error:
            raise InputError(f"{name}: not a readable file ({error}); see docs/devices.md") from error
    if name not in known_devices():
        raise InputError(
            f"device {name!r} is unknown; known are {', '.join(known_devices())}; or give the path of a .yaml file"
        )
    return _parse(name, (_FOLDER / f"{name}.yaml").read_bytes(), f"devices/{name}.yaml")


def dump_device(device: Device) -> str:
    """The YAML of a device, as `load_device` reads it, under a comment by which a command knows its own files."""
    values = device.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    return f"{WRITTEN}\n{yaml.safe_dump(values, sort_keys=False, width=100)}"


def _parse(name: str, data: bytes, where: str) -> Device:
    raw = load_yaml(data, where)
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected keys such as link_gb_per_s, found {type(raw).__name__}")
    try:
        return Device.model_validate({"name": name, **raw})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        found = "" if first["type"] == "missing" else f" (found {first['input']!r:.80})"
        raise InputError(f"{where}: {key}: {first['msg']}{found}; see docs/devices.md") from error


_FOLDER = files("moe_beyond.devices") / "profiles"
