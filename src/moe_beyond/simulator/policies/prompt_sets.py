"""Expert sets chosen for a whole prompt, from training prompts that resemble it or those before it.

Both publications load their set and then run on it alone. In a replay, where no output may change, an expert of the set
is loaded at its first use and stays, and any other is loaded when it is used and not kept. Beside a model, PreMoe runs
on its set alone.

Shape suffixes: P prompts of the replay, G prompts or patterns of the training split, S steps, L MoE layers,
M = L * E experts of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from moe_beyond.simulator.engine.online import Online
from moe_beyond.simulator.engine.orders import by_feature
from moe_beyond.simulator.engine.policy import SCORE, Policy
from moe_beyond.simulator.jit import F32, F64
from moe_beyond.simulator.policies.count_matrices import by_layer_share, finished_PM, replayed_PM, uses_A
from moe_beyond.simulator.policies.online_choices import OnlinePreMoe
from moe_beyond.simulator.schedule.events import Events
from moe_beyond.traces.schema import Trace, TraceMetadata

_NEIGHBOURS = 10
_KEPT_PROMPTS = 4
_PATTERNS = 16
_OPENING_STEPS = 8
_SUBSET = 0.5
"""Part of each layer's experts that a subset holds: as where the publication loses little."""


@dataclass(frozen=True)
class EMoe(Policy):
    """A set predicted for each four prompts from the ones before them, and kept for all four (eMoE, arXiv 2503.06823).

    The ten training prompts whose counts resemble those of the latest four prompts most determine the set; for the
    first four prompts all do. The predictor of the publication is not in its public text: neighbours stand in for it,
    and the number of prompts is assumed.

    Attributes:
        shares_GM: I64 of the training prompts as shares of their layers, float32.
    """

    shares_GM: F32
    name = "emoe"
    title = "eMoE"
    bypass = True
    rank = staticmethod(by_feature(SCORE))

    @classmethod
    def fit(cls, training: Trace) -> EMoe:
        """Count the training prompts."""
        return cls(by_layer_share(finished_PM(training), training.metadata.num_layers))

    @override
    def scores_SM(self, events: Events) -> F32:
        counts_PM = replayed_PM(events)
        sets_PM = np.empty_like(counts_PM)
        for first in range(0, len(counts_PM), _KEPT_PROMPTS):
            predicted_M = self.shares_GM.mean(axis=0)
            if first:
                recent_M = counts_PM[first - _KEPT_PROMPTS : first].sum(axis=0)
                nearest = np.argsort(-_cosines(self.shares_GM, recent_M), kind="stable")[:_NEIGHBOURS]
                predicted_M = self.shares_GM[nearest].mean(axis=0)
            sets_PM[first : first + _KEPT_PROMPTS] = predicted_M
        return sets_PM[events.prompt_S]


@dataclass(frozen=True)
class PreMoe(Policy):
    """Keeps the experts of the nearest stored task pattern (PreMoe, arXiv 2505.17639).

    A pattern is the centre of a cluster of training prompts by their counts, which stand in for router logits. A prompt
    is matched once, when its batched prefill or its first eight tokens have been routed; until then the training
    split's popularity holds.

    Attributes:
        patterns_GM: Centres of clusters of prompts, shares of each layer, float32.
        popularity_M: Mean share of all training prompts, float32.
    """

    patterns_GM: F32
    popularity_M: F32
    name = "pre_moe"
    title = "PreMoe"
    bypass = True
    rank = staticmethod(by_feature(SCORE))

    @classmethod
    def fit(cls, training: Trace, seed: int = 0) -> PreMoe:
        """Cluster the training prompts."""
        from sklearn.cluster import KMeans  # noqa: PLC0415 - importing it takes a second

        shares_GM = by_layer_share(finished_PM(training), training.metadata.num_layers)
        distinct = len(np.unique(shares_GM, axis=0))
        clusters: Any = KMeans(min(_PATTERNS, distinct), n_init=1, random_state=seed).fit(shares_GM)
        return cls(clusters.cluster_centers_.astype(np.float32), shares_GM.mean(axis=0))

    @override
    def scores_SM(self, events: Events) -> F32:
        meta, prompt_S = events.metadata, events.prompt_S
        scores_SM = np.broadcast_to(self.popularity_M, (events.num_steps, meta.num_model_experts)).copy()
        starts = np.nonzero(np.concatenate([[True], prompt_S[1:] != prompt_S[:-1]]))[0]
        all_uses_A = uses_A(events)
        event_S = np.searchsorted(events.step_N, np.arange(events.num_steps + 1))
        for start, end in zip(starts, [*starts[1:], events.num_steps], strict=True):
            matched = min(end, start + (_OPENING_STEPS if events.is_decode_S[start] else 1))
            opening = slice(events.offsets_N[event_S[start]], events.offsets_N[event_S[matched]])
            counts_M = np.bincount(events.members_A[opening], all_uses_A[opening], meta.num_model_experts)
            scores_SM[matched:end] = self.nearest_M(counts_M)
        return scores_SM

    def nearest_M(self, counts_M: npt.NDArray[Any]) -> F32:
        """The pattern that resembles a prompt's counts most, float32."""
        return np.asarray(self.patterns_GM[_cosines(self.patterns_GM, counts_M).argmax()])

    @override
    def online(self, meta: TraceMetadata) -> Online:
        kept = max(meta.top_k, int(_SUBSET * meta.num_experts))
        return OnlinePreMoe(self, meta.num_layers, kept, _OPENING_STEPS)


def _cosines(rows_GM: F32, counts_M: npt.NDArray[Any]) -> F64:
    lengths_G = np.linalg.norm(rows_GM.astype(np.float64), axis=1)
    return np.asarray(rows_GM @ counts_M / np.maximum(lengths_G * np.linalg.norm(counts_M), 1e-12))
