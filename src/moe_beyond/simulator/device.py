"""What a device does in how much time: a small YAML each under `devices/`."""

from __future__ import annotations

from importlib.resources import files
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import Field, ValidationError

from moe_beyond.errors import InputError
from moe_beyond.settings import Settings

MILLISECONDS = 1e3
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
    memory_gb_per_s: float = Field(gt=0)
    """Bandwidth at which the processor reads resident weights."""
    layer_overhead_us: float = Field(ge=0)
    """Time of a layer that does not depend on its weights: launches, routing, synchronisation."""

    def transfer_ms(self, num_bytes: Amount) -> Amount:
        """Milliseconds that the link is busy with one expert of this size, or with one of each of several sizes."""
        return num_bytes / (self.link_gb_per_s * 1e9) * MILLISECONDS + self.setup_us / self.lanes / 1e3

    def read_ms(self, num_bytes: Amount) -> Amount:
        """Milliseconds in which the processor reads this many resident bytes."""
        return num_bytes / (self.memory_gb_per_s * 1e9) * MILLISECONDS


def known_devices() -> list[str]:
    """Names of the devices that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))


def load_device(name: str) -> Device:
    """A device of the package by its name.

    Raises:
        InputError: Unknown name, or a file that breaks the model.
    """
    if name not in known_devices():
        raise InputError(f"device {name!r} is unknown; known are {', '.join(known_devices())}")
    raw = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    try:
        return Device(name=name, **raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"devices/{name}.yaml: {where}: {first['msg']} (found {first['input']!r})") from error


_FOLDER = files("moe_beyond.simulator") / "devices"
