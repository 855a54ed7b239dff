"""What policies are replayed on: events of a trace under the rules of the settings, capacities and devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_beyond.devices.device import Device, load_device
from moe_beyond.devices.workload import Workload
from moe_beyond.simulator.schedule.events import Events, events_of
from moe_beyond.simulator.study.settings import ReplaySettings, SimulateSettings
from moe_beyond.traces.schema import Trace, TraceMetadata


@dataclass(frozen=True)
class Case:
    """What policies are replayed on.

    Attributes:
        events: Of the split.
        slots: Capacities in experts.
        timed_slots: Those of them with a clock.
        headline_slots: The capacity of the headline.
        devices: Links and processors.
        settings: Everything else.
    """

    events: Events
    slots: tuple[int, ...]
    timed_slots: tuple[int, ...]
    headline_slots: int
    devices: tuple[Device, ...]
    settings: SimulateSettings

    @property
    def workload(self) -> Workload:
        """What there is to move and to compute."""
        settings = self.settings
        return Workload.of(self.events.metadata, settings.lookahead_layers, expert_mib=settings.timed_expert_mib)

    @property
    def links(self) -> list[Device]:
        """The devices with each of the bandwidths that are tried."""
        return [
            device.with_link(bandwidth) for device in self.devices for bandwidth in self.settings.bandwidths_gb_per_s
        ]


def case_of(trace: Trace, settings: SimulateSettings) -> Case:
    """What policies are replayed on, from a trace and the settings."""
    meta = trace.metadata
    timed = settings.capacities if settings.timed_capacities is None else settings.timed_capacities
    return Case(
        events=replay_events(trace, settings),
        slots=tuple(capacities(meta, settings.capacities)),
        timed_slots=tuple(capacities(meta, timed)),
        headline_slots=capacity_experts(meta, settings.headline_capacity),
        devices=tuple(load_device(device) for device in settings.devices),
        settings=settings,
    )


def replay_events(trace: Trace, settings: ReplaySettings) -> Events:
    """The events of a trace under the rules of the settings."""
    return events_of(
        trace,
        settings.prefill,
        batch=settings.batch,
        waves=not settings.keep_warm,
        block=settings.block_tokens,
        accepted_share=settings.accepted_share,
    )


def capacities(meta: TraceMetadata, shares: Sequence[float]) -> list[int]:
    """Capacities in experts, rising; shares that come to the same number of experts count once."""
    return sorted({capacity_experts(meta, share) for share in shares})


def capacity_experts(meta: TraceMetadata, share: float) -> int:
    """A share of the model's experts as a whole number, at least one."""
    return max(1, round(share * meta.num_model_experts))


def first_tokens(trace: Trace, tokens: int) -> Trace:
    """The first prompts of a trace, as many as hold so many tokens."""
    enough = int(np.searchsorted(trace.prompt_offsets[1:], tokens)) + 1
    return trace.select(np.arange(min(enough, trace.num_prompts)))
