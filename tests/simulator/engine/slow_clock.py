"""A slow, obvious event loop with a clock: dicts, sets and loops, written from the documentation.

It shares no code with the compiled loops, only their input. Its rules:

**Time.** An event is one layer of one step. A processor computes it; beside the processor a link loads experts, one
after another. An event has four parts, and the link prefetches during each:

1. The token step of the predictor works. Its prediction is not there yet: ranks read the scores of the step before, and
   only the prefetch requests known from earlier moments count.
2. The layer computes what comes ahead of its experts. The requests known before the event count from here on.
3. The router has chosen. What is missing is loaded by demand, one expert after another; a prefetch under way pauses
   meanwhile. An accessed expert whose prefetch is under way is waited for: that takes as long as its rest needs. The
   layer step of the predictor works at the same time. Where loading takes longer, the processor stalls for the
   difference; where the layer step takes longer, the link prefetches for the difference.
4. The experts compute, one after another, and what a prefill's tokens take beyond that. The requests known when the
   router had chosen count from here on.

**Misses.** Loading the first missing expert of an event may take a time of its own beside the transfer, and the
processor may copy each into the cache before it computes it. Instead of being loaded, a missing expert may be computed
by the host's processor, which begins when the layer step has ended and works beside all else: of the missing experts,
in order, each is loaded unless the host would be done sooner with it. What the host has computed is copied in the
background, ahead of prefetches; a step begins when the copies of the one before are done, and waits for them after
its token step. With overlap the experts compute while others of the event load; the last that is waited for computes
when it is there.

**Pages.** Whatever the link reads, by demand or when a prefetch begins, is read sooner where it is among the experts
that were read last, as many as a limit of bytes allows. Emptying the cache does not change which these are.

**Prefetch requests.** A request names experts for one coming event, each with a priority, the most wanted first. It
replaces an earlier request for the same event; what of that is loaded, or under way, stays. With a lookahead of H no
request counts earlier than before the event that lies H events ahead of its own.

The link takes one expert after another: of the first experts of all requests the one of the highest priority, of equal
ones that of the sooner event. Experts that are resident, or on their way, are passed over for good. A prefetch begins
only while time is left in a part, and takes its place in the cache then. If there is no space for it, its event has to
wait until the next event, even if another request replaces this one. When a router has chosen, what has not begun for
its event is dropped; a prefetch under way goes on.

**Space.** An expert that is loaded on demand is admitted at once, even above the budget. After that, before part 3 goes
on, experts of the budget's group are evicted until it is kept. To make space for a prefetch, experts are evicted until
it fits or all that remain are protected. The lowest rank is evicted first, of equal ones the least recently used
(before those an expert that was never used), of these the lowest id. Protected are

- the expert whose prefetch is under way;
- the experts that a request names, until its event has ended; but from evictions to keep the budget after the event's
  accesses they are protected only if their event is still to come;
- the event's own experts, from its accesses to its end, unless the policy bypasses.

If all that remain are protected and an event's accesses still exceed the budget, none is protected, unless overrun is
allowed. A prefetch under way whose expert is evicted is cancelled.

**Emptying.** Ahead of an event that is to start cold all experts are removed, nothing of the past is kept, and every
prefetch that is under way or has not begun is dropped. These are no evictions.

**Counting.** An access is a hit; a prefetched hit, if it is the first use of a prefetched expert; late, if its prefetch
is under way; or a miss. A prefetch is counted, with its bytes, in the event in which it begins, and there as useful or
useless once that is known; at the end of the trace, what was never used was useless. An expert that an event loads and
does not keep, because it is evicted to keep the budget right after the accesses, is no eviction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from moe_beyond.simulator.engine.budget import Budget
from moe_beyond.simulator.engine.timed_loop import Misses, Times
from moe_beyond.simulator.engine.usage import HIT, LATE, MISSED, PREFETCHED
from moe_beyond.simulator.policies.prefetch import Prefetch
from moe_beyond.simulator.schedule.events import Events
from tests.simulator.strategies import members


@dataclass(frozen=True)
class Request:
    """A prefetch request.

    Attributes:
        known: 2 * n if it is known before event n, 2 * n + 1 if it is when the router of event n has chosen.
        event: The event that it is for.
        experts: The experts that it names, the most wanted first.
        priorities: Of each of them.
    """

    known: int
    event: int
    experts: list[int]
    priorities: list[float]


@dataclass
class Past:
    """What a rank may read."""

    layer_of: list[int]
    last_use: dict[int, int] = field(default_factory=dict)
    last_step: dict[int, int] = field(default_factory=dict)
    uses: Counter[int] = field(default_factory=Counter)
    uses_resident: dict[int, int] = field(default_factory=dict)
    admission: dict[int, int] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)
    """Of each expert; second scores, if there are any, follow after those of all experts."""

    def used_last(self, expert: int) -> int:
        """The access that used the expert last, or -1."""
        return self.last_use.get(expert, -1)


@dataclass(frozen=True)
class Now:
    """Where the replay stands: the access that comes next, the step, and its last layer whose router has chosen."""

    access: int
    step: int
    layer: int


Rank = Callable[[Past, int, Now], float]
"""Of an expert: the lowest is evicted first."""


@dataclass(frozen=True)
class Case:
    """All that a replay depends on.

    Attributes:
        events: The accesses.
        budget: Of the cache.
        rank: Of the policy.
        requests: Of the policy, in any order.
        keep_warm: Whether the cache is kept from prompt to prompt.
        scores: No row, one for all steps, or one a step.
        scores_ahead: What a router's choice makes known of a layer h + 1 ahead, at `[h][token][layer]`.
        bypass: Whether an event's own experts compete with the residents.
        overrun: Whether an event that alone exceeds the budget may keep all its experts.
        times: Milliseconds; None: loading takes no time, and there is some ahead of every event to prefetch in.
    """

    events: Events
    budget: Budget
    rank: Rank
    requests: Sequence[Request] = ()
    keep_warm: bool = True
    scores: Sequence[list[float]] = ()
    scores_ahead: Sequence[list[list[list[float]]]] = ()
    bypass: bool = False
    overrun: bool = False
    times: Times | None = None


@dataclass
class Record:
    """What happened in an event."""

    outcomes: list[int] = field(default_factory=list)
    time_ms: float = 0.0
    stall_ms: float = 0.0
    evictions: int = 0
    wasted: int = 0
    demand_bytes: int = 0
    prefetches: int = 0
    prefetch_bytes: int = 0
    useful: int = 0
    useless: int = 0


def replay(case: Case) -> list[Record]:
    """Replay all events."""
    return _Replay(case).run()


class _Replay:
    def __init__(self, case: Case) -> None:
        events, meta, times = case.events, case.events.metadata, case.times
        self.case = case
        # of each event
        self.members, self.layers, self.steps = members(events), events.layer_N.tolist(), events.step_N.tolist()
        self.prompts = events.prompt_S[events.step_N].tolist()
        none, some = [0.0] * len(self.members), [1.0] * len(self.members)
        self.token_step_ms = none if times is None else times.token_step_N.tolist()
        self.layer_step_ms = none if times is None else times.layer_step_N.tolist()
        self.dense_ms = some if times is None else times.dense_N.tolist()
        self.tokens_ms = none if times is None or times.tokens_N is None else times.tokens_N.tolist()
        # of each expert
        self.layer_of = [expert // meta.num_experts for expert in range(meta.num_model_experts)]
        self.bytes_of = [meta.expert_bytes[layer] for layer in self.layer_of]
        self.units_of, self.group_of = case.budget.units_M.tolist(), case.budget.group_M.tolist()
        self.transfer_ms = [0.0] * len(self.layer_of) if times is None else times.transfer_VM[0].tolist()
        self.compute_ms = [0.0] * len(self.layer_of) if times is None else times.read_VM[0].tolist()
        misses = Misses.loaded(np.array([self.transfer_ms])) if times is None or times.misses is None else times.misses
        self.load_ms, self.cpu_ms, self.admit_ms = (of[0].tolist() for of in misses[:3])
        self.first_load_ms, self.overlap = misses.layer_ms, misses.overlap
        self.owed_ms = 0.0  # copies in the background
        pages = None if times is None else times.pages
        self.page_limit = 0 if pages is None else pages.held
        self.page_saves_ms, self.page_bytes = ([], []) if pages is None else (of[0].tolist() for of in pages[:2])
        self.read_last: list[int] = []  # the latest read at the end
        # of each group
        self.budgets = case.budget.budget_G.tolist()
        self.records = [Record() for _ in self.members]
        self.past = Past(self.layer_of)
        self.resident: set[int] = set()
        self.begun_in: dict[int, int] = {}  # of prefetched experts that nothing has used: the event of the prefetch
        self.under_way: int | None = None
        self.rest_ms = 0.0  # of the prefetch under way
        self.waiting: dict[int, list[tuple[int, float]]] = {}  # by event: experts to prefetch, and their priorities
        self.named: dict[int, set[int]] = {}  # by event: the experts that its request names
        self.without_space: set[int] = set()  # events whose requests wait until the next event
        self.own: set[int] = set()
        self.loaded: set[int] = set()  # by the event's own accesses, until the budget is kept
        self.event = 0
        self.routed = -1
        self.accesses = 0
        self.admissions = 0

    def run(self) -> list[Record]:
        for event in range(len(self.members)):
            self.event = event
            self.replay_event()
        self.count_unused()
        return self.records

    # the parts of an event

    def replay_event(self) -> None:
        event, record = self.event, self.records[self.event]
        self.start_event()

        self.prefetch_for(self.token_step_ms[event])
        copying_ms = 0.0
        if event > 0 and self.steps[event] != self.steps[event - 1]:
            copying_ms, self.owed_ms = self.owed_ms, 0.0

        self.read_scores()
        self.add_requests(known=2 * event)
        self.prefetch_for(self.dense_ms[event])

        self.routed = self.layers[event]
        self.waiting.pop(event, None)
        loading_ms, accelerator_ms, last_ms, host_ms = self.access_members()
        self.keep_budget()
        self.prefetch_for(self.layer_step_ms[event] - loading_ms)

        self.add_requests(known=2 * event + 1)
        self.read_scores_ahead()
        all_loaded_ms = max(0.0, loading_ms - self.layer_step_ms[event])  # as what follows, from the layer step's end
        first_ms = min(all_loaded_ms, accelerator_ms - last_ms) if self.overlap else 0.0
        done_ms = max(all_loaded_ms + accelerator_ms - first_ms, host_ms)
        self.prefetch_for(done_ms - all_loaded_ms)

        record.stall_ms = copying_ms + all_loaded_ms - first_ms
        steps_ms = self.token_step_ms[event] + self.layer_step_ms[event]
        record.time_ms = copying_ms + steps_ms + self.dense_ms[event] + done_ms

    def start_event(self) -> None:
        self.own = set()
        self.without_space = set()
        self.named.pop(self.event - 1, None)
        if self.event == 0 or self.steps[self.event] != self.steps[self.event - 1]:
            self.routed = -1
        starts = self.event == 0 or self.prompts[self.event] != self.prompts[self.event - 1]
        if starts and not self.case.keep_warm:
            self.empty()

    def count_unused(self) -> None:
        for event in self.begun_in.values():
            self.records[event].useless += 1

    def empty(self) -> None:
        self.count_unused()
        self.begun_in.clear()
        self.resident.clear()
        self.waiting.clear()
        self.under_way = None
        self.owed_ms = 0.0
        self.past = Past(self.layer_of, scores=self.past.scores)

    def read_scores(self) -> None:
        rows = self.case.scores
        step_begins = self.event == 0 or self.steps[self.event] != self.steps[self.event - 1]
        if rows and step_begins:
            self.past.scores = list(rows[0] if len(rows) == 1 else rows[self.steps[self.event]])

    def read_scores_ahead(self) -> None:
        token = int(self.case.events.token_S[self.steps[self.event]])
        for ahead, said_TLE in enumerate(self.case.scores_ahead if token >= 0 else (), start=1):
            layer = self.layers[self.event] + ahead
            for expert, of in enumerate(self.layer_of):
                if of == layer:
                    self.past.scores[expert] = said_TLE[token][layer][expert - self.layer_of.index(layer)]

    def add_requests(self, known: int) -> None:
        for request in self.case.requests:
            if request.known == known:
                self.waiting[request.event] = list(zip(request.experts, request.priorities, strict=True))
                self.named[request.event] = set(request.experts)

    # accesses

    def access_members(self) -> tuple[float, float, float, float]:
        """Returns how long loading takes, computing here, here with the last expert waited for, and on the host."""
        loading_ms = last_ms = host_ms = 0.0
        here_ms = self.tokens_ms[self.event]
        any_load = False
        for expert in self.members[self.event]:
            outcome = self.outcome_of(expert)
            self.records[self.event].outcomes.append(outcome)
            own_ms = self.compute_ms[expert]
            if outcome == LATE:
                loading_ms += self.rest_ms
                self.under_way = None
                last_ms = own_ms
            if outcome == MISSED:
                loaded_at = loading_ms + (0.0 if any_load else self.first_load_ms) + self.load_ms[expert]
                if host_ms + self.cpu_ms[expert] < loaded_at:
                    host_ms += self.cpu_ms[expert]
                    self.owed_ms += self.transfer_ms[expert]
                    own_ms = 0.0
                else:
                    loading_ms, any_load = loaded_at - self.saved_by_pages(expert), True
                    own_ms += self.admit_ms[expert]
                    last_ms = own_ms
                self.records[self.event].demand_bytes += self.bytes_of[expert]
                self.admit(expert)
                self.loaded.add(expert)
            self.use(expert)
            here_ms += own_ms
        self.own = set(self.members[self.event])
        return loading_ms, here_ms, last_ms, host_ms

    def outcome_of(self, expert: int) -> int:
        if expert == self.under_way:
            return LATE
        if expert in self.begun_in:
            return PREFETCHED
        return HIT if expert in self.resident else MISSED

    def use(self, expert: int) -> None:
        if expert in self.begun_in:
            self.records[self.begun_in.pop(expert)].useful += 1
        self.past.last_use[expert] = self.accesses
        self.past.last_step[expert] = self.steps[self.event]
        self.past.uses[expert] += 1
        self.past.uses_resident[expert] += 1
        self.accesses += 1

    def admit(self, expert: int) -> None:
        self.resident.add(expert)
        self.admissions += 1
        self.past.admission[expert] = self.admissions
        self.past.uses_resident[expert] = 0

    # the link

    def saved_by_pages(self, expert: int) -> float:
        """Read an expert; returns how much sooner that is done."""
        if not self.page_limit:
            return 0.0
        found = expert in self.read_last
        if found:
            self.read_last.remove(expert)
        self.read_last.append(expert)
        while self.read_last and sum(self.page_bytes[one] for one in self.read_last) > self.page_limit:
            del self.read_last[0]
        saved: float = self.page_saves_ms[expert] if found else 0.0
        return saved

    def prefetch_for(self, time_ms: float) -> None:
        copied_ms = min(self.owed_ms, max(0.0, time_ms))
        self.owed_ms -= copied_ms
        time_ms -= copied_ms
        while time_ms > 0:
            if self.under_way is None and not self.begin_prefetch():
                return
            if self.rest_ms > time_ms:
                self.rest_ms -= time_ms
                return
            time_ms -= self.rest_ms
            self.under_way = None

    def begin_prefetch(self) -> bool:
        """Returns whether there was anything to prefetch, and space for it."""
        event = self.highest_priority()
        while event is not None:
            expert, _ = self.waiting[event][0]
            if self.make_space_for(expert):
                self.waiting[event].pop(0)
                self.admit(expert)
                self.begun_in[expert] = self.event
                self.records[self.event].prefetches += 1
                self.records[self.event].prefetch_bytes += self.bytes_of[expert]
                self.under_way = expert
                self.rest_ms = self.transfer_ms[expert] - self.saved_by_pages(expert)
                return True
            self.without_space.add(event)
            event = self.highest_priority()
        return False

    def highest_priority(self) -> int | None:
        """The event whose request has the first expert of the highest priority."""
        first = []
        for event in self.waiting.keys() - self.without_space:
            experts = self.waiting[event]
            while experts and experts[0][0] in self.resident:
                experts.pop(0)
            first += [(-priority, event) for _, priority in experts[:1]]
        return min(first)[1] if first else None

    # space

    def keep_budget(self) -> None:
        for group in {self.group_of[expert] for expert in self.members[self.event]}:
            budget = self.budgets[group]
            self.make_space(group, budget, self.own_unless_bypassed() | self.named_for(self.event + 1))
            if not self.case.overrun:
                self.make_space(group, budget, set())
        self.loaded.clear()

    def make_space_for(self, expert: int) -> bool:
        group = self.group_of[expert]
        limit: int = self.budgets[group] - self.units_of[expert]
        self.make_space(group, limit, self.own_unless_bypassed() | self.named_for(self.event))
        return self.units_used(group) <= limit

    def own_unless_bypassed(self) -> set[int]:
        return set() if self.case.bypass else self.own

    def named_for(self, first_event: int) -> set[int]:
        """Experts that requests for this event and later ones name, and the one under way."""
        named = {expert for event, experts in self.named.items() if event >= first_event for expert in experts}
        return named if self.under_way is None else named | {self.under_way}

    def units_used(self, group: int) -> int:
        return sum(self.units_of[expert] for expert in self.resident if self.group_of[expert] == group)

    def make_space(self, group: int, limit: int, protected: set[int]) -> None:
        now = Now(self.accesses, self.steps[self.event], self.routed)
        while self.units_used(group) > limit:
            candidates = [e for e in self.resident if self.group_of[e] == group and e not in protected]
            if not candidates:
                return
            ranks = {e: (self.case.rank(self.past, e, now), self.past.used_last(e), e) for e in candidates}
            self.evict(min(candidates, key=lambda expert: ranks[expert]))

    def evict(self, expert: int) -> None:
        self.resident.discard(expert)
        self.records[self.event].evictions += expert not in self.loaded
        if expert in self.begun_in:
            self.records[self.event].wasted += 1
            self.records[self.begun_in.pop(expert)].useless += 1
        if expert == self.under_way:
            self.under_way = None


# ranks of policies


def anticipate(persistence: float, memory: float, rarest: float) -> Rank:
    """The longest expected wait, in layers, is evicted first."""

    def rank(past: Past, expert: int, now: Now) -> float:
        num_layers = max(past.layer_of) + 1
        chance, rate = past.scores[expert], max(past.scores[len(past.layer_of) + expert], rarest)
        layers_ahead = past.layer_of[expert] - now.layer
        if layers_ahead <= 0:
            # the layer has run: it runs again in the next token
            layers_ahead += num_layers
            rate = max(rate + memory * ((past.last_step.get(expert) == now.step) - rate), rarest)
            chance = rate + persistence * (chance - rate)
        return -(layers_ahead + (1 - chance) * num_layers / rate)

    return rank


def anticipate_later(past: Past, expert: int, now: Now) -> float:
    """The chance that this token or the next uses it, of a predictor that says how often the tokens to come do."""
    by_next_token = past.scores[len(past.layer_of) + expert]
    if past.layer_of[expert] <= now.layer:
        return by_next_token
    by_this_one = past.scores[expert]
    return by_this_one + by_next_token - by_this_one * by_next_token


RANKS: dict[str, Rank] = {
    "lru": lambda past, expert, now: past.used_last(expert),
    "lfu": lambda past, expert, now: past.uses[expert],
    "lfu_resident": lambda past, expert, now: past.uses_resident[expert],
    "lfru": lambda past, expert, now: past.uses[expert] / (now.access - past.used_last(expert)),
    "fifo": lambda past, expert, now: past.admission[expert],
    "least_stale": lambda past, expert, now: past.admission[expert] + 1e9 * (past.last_step.get(expert) == now.step),
    "static": lambda past, expert, now: past.scores[expert],
}


def belady(events: Events, *, keep_warm: bool) -> Rank:
    """The farthest next use is evicted first; uses after the cache is emptied do not count."""
    lists, prompts = members(events), events.prompt_S[events.step_N].tolist()
    event_of = [event for event, experts in enumerate(lists) for _ in experts]

    def rank(_past: Past, expert: int, now: Now) -> float:
        event = event_of[now.access - 1]
        for later in range(event + 1, len(lists)):
            if not keep_warm and prompts[later] != prompts[event]:
                break
            if expert in lists[later]:
                return -later
        return float("-inf")

    return rank


# requests


def ahead_of_each(experts_of_events: Sequence[list[int]]) -> list[Request]:
    """A request for each event, known just before it."""
    return [Request(2 * n, n, experts, [0.0] * len(experts)) for n, experts in enumerate(experts_of_events)]


def hits_of(record: Record) -> int:
    """Accesses of an event that did not wait for a load of their own."""
    return sum(outcome != MISSED for outcome in record.outcomes)


def within(requests: Sequence[Request], lookahead: int) -> list[Request]:
    """The same requests, none known before its event is `lookahead` events ahead or fewer."""
    in_order = sorted(requests, key=lambda request: request.known)
    moved = [replace(one, known=max(one.known, 2 * (one.event - lookahead))) for one in in_order]
    return sorted(moved, key=lambda request: request.known)


def most_probable(probabilities: Sequence[float], layer: int, width: int, threshold: float) -> list[int]:
    """The most probable experts of a layer, at most `width`, none below the threshold; ties by lower id."""
    ranked = sorted(range(len(probabilities)), key=lambda expert: (-probabilities[expert], expert))
    return [layer * len(probabilities) + e for e in ranked[:width] if probabilities[e] >= threshold]


def predicted(events: Events, policy: Prefetch) -> list[Request]:
    """The requests of a predictor: by its token step, known before a token's first event, and by its layer step.

    A layer step, one or more layers ahead, is known when the router so many layers before has chosen. Where it is for
    the next token too, the likeliest expert of the first layer that comes is requested when a token's last router has
    chosen.
    """
    steps, layers = events.step_N.tolist(), events.layer_N.tolist()
    layer_step = [] if policy.layers_HTLE is None else list(policy.layers_HTLE)
    requests = []
    for event, (layer, step) in enumerate(zip(layers, steps, strict=True)):
        row = int(events.token_S[step])
        known_TLE = [(2 * steps.index(step), policy.probabilities_TLE)]
        for ahead, ahead_TLE in enumerate(layer_step, start=1):
            if event >= ahead and steps[event - ahead] == step:
                known_TLE.append((2 * (event - ahead) + 1, ahead_TLE))
        for known, said_TLE in known_TLE if row >= 0 else ():
            experts = most_probable(said_TLE[row, layer].tolist(), layer, policy.width, policy.threshold)
            requests.append(Request(known, event, experts, [0.0] * len(experts)))
        row_before = int(events.token_S[step - 1])
        begins = layer == 0 and event > 0 and layers[event - 1] != 0
        if policy.later_TLE is not None and begins and row_before >= 0:
            experts = most_probable(policy.later_TLE[row_before, 0].tolist(), 0, 1, policy.threshold)
            requests.append(Request(2 * event - 1, event, experts, [0.0] * len(experts)))
    return requests


def last_of_each(events: Events, requests: Sequence[Request]) -> list[list[int]]:
    """The experts that the last request for each event names."""
    last = {one.event: one.experts for one in sorted(requests, key=lambda request: request.known)}
    return [last.get(event, []) for event in range(events.num_events)]
