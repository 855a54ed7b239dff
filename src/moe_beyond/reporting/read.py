"""A finished run: the tables that its stages wrote, and the parameters behind them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from moe_beyond.capture.settings import TracesSettings
from moe_beyond.cells import plain
from moe_beyond.errors import InputError
from moe_beyond.reporting.names import LRU
from moe_beyond.reporting.text import texts
from moe_beyond.settings import flatten
from moe_beyond.simulator.study.settings import SimulateSettings

_METRICS = ("reference", "extract", "split", "tune", "train", "export")
TOKEN = "token"  # noqa: S105 - the token step's horizon, no secret


@dataclass(frozen=True)
class Contest:
    """Rows of `on_device` of one split, device and capacity; `ours` is None where no use of it was chosen."""

    split: str
    device: str
    lru: dict[str, Any]
    best: dict[str, Any]
    ours: dict[str, Any] | None


@dataclass(frozen=True)
class Run:
    """What the page is made of. A table that the run has no rows for is empty.

    Attributes:
        tables: Those of the stages assess, export and simulate, by name: `sources` in texts.yaml lists them. What
            writes them documents their columns: `assess.assessment`, `evaluation.evaluate`, `paper.scores`,
            `simulator.study.tables`, `paper.caches`.
        card: The suitability card.
        prompts: The split of every prompt.
        trials: Of the search.
        history: Of the training.
        metrics: metrics.json by stage, of the stages that the page quotes.
        live: Tables of the verify stage, by name: `live.verify` documents them; none where it has not run.
        source: Where the traces come from: `reference`, `transformers` or `import`.
        settings: Of the replay.
        parameters: Every parameter shown, flat.
    """

    tables: dict[str, pl.DataFrame]
    card: dict[str, Any]
    prompts: pl.DataFrame
    trials: pl.DataFrame
    history: pl.DataFrame
    metrics: dict[str, dict[str, Any]]
    live: dict[str, pl.DataFrame]
    source: str
    settings: SimulateSettings
    parameters: dict[str, Any]

    @cached_property
    def timed(self) -> pl.DataFrame:
        """The table `on_device`, in `break_even_token_step_ms` the break-even latency where `pays` has one."""
        keys = ["split", "device", "capacity_experts", "policy"]
        known = self.tables["pays"].select(*keys, "break_even_token_step_ms")
        return self.tables["on_device"].join(known, on=keys, how="left", maintain_order="left")

    @cached_property
    def splits(self) -> list[str]:
        """Test splits, the one that the page leads with first: the last of the tables that has times."""
        splits = self.tables["unlimited_link"]["split"].unique(maintain_order=True).to_list()
        return sorted(splits, key=lambda split: (split in self.timed["split"], splits.index(split)))[::-1]

    @property
    def split(self) -> str:
        """The test split that the page leads with."""
        return self.splits[0]

    @cached_property
    def devices(self) -> list[str]:
        """Devices with times, the headline's first; none where nothing was timed."""
        timed = self.timed["device"].unique(maintain_order=True).to_list()
        return sorted(timed, key=lambda device: device != self.settings.headline_device)

    @cached_property
    def capacity(self) -> int:
        """Experts of the headline's capacity."""
        sizes = (
            self.tables["unlimited_link"].select("capacity_experts", "capacity_fraction").unique(maintain_order=True)
        )
        away = (pl.col("capacity_fraction") - self.settings.headline_capacity).abs()
        return int(sizes.sort(away)["capacity_experts"][0])

    @property
    def token_cycle(self) -> tuple[float, str]:
        """The experts of one token as a share of the model's, and the words for it."""
        return self.card["token_cycle_fraction"], f"token cycle: {self.card['token_cycle_experts']} experts"

    @cached_property
    def predictor(self) -> str:
        """Name of our predictor: the one that export scored, beside baselines without a layer step."""
        return str(self.tables["quality"]["predictor"][0])

    @cached_property
    def places(self) -> list[tuple[str, str]]:
        """Splits and devices that have times, the headline's first."""
        timed = self.timed["split"].unique()
        return [(split, device) for split in self.splits for device in self.devices if split in timed]

    def figure(self, name: str, split: str, device: str = "") -> str:
        """Name of a figure: plain at the headline's place, so that it is found there whatever the parameters."""
        if split == self.split and device in ("", *self.devices[:1]):
            return name
        return "_".join(filter(None, (name, device, split)))

    def at(self, split: str, device: str) -> pl.DataFrame:
        """What every policy did there at the headline's capacity, fastest first."""
        here = self.timed.filter(split=split, device=device, capacity_experts=self.capacity)
        return here.sort("ms_per_token", "policy")

    def contest(self, split: str, device: str) -> Contest:
        """LRU, the best without the predictor and ours on a device at the headline's capacity."""
        rows = self.at(split, device)
        lru = rows.row(by_predicate=pl.col("policy") == LRU, named=True)
        best = rows.row(by_predicate=pl.col("best_without_predictor"), named=True)
        return Contest(split, device, lru, best, next(rows.filter("ours").iter_rows(named=True), None))


def read_run(root: Path, seed: int, traces: TracesSettings, settings: SimulateSettings) -> Run:
    """Read what the stages wrote below `reports/` and `data/splits/`.

    Raises:
        InputError: A file is missing; the message names the stage to run.
    """
    reports, settings = root / "reports", settings.of_source(traces.source)
    used = {key: value for key, value in traces.model_dump(by_alias=True).items() if key in ("source", traces.source)}
    return Run(
        tables={
            path.stem: pl.read_parquet(_found(reports / path, path.parts[0]), glob=False) for path in _table_paths()
        },
        card=_json(reports / "assess" / "card.json", "assess"),
        prompts=_prompts(_found(root / "data" / "splits" / "prompts.csv", "split")),
        trials=pl.read_csv(_found(reports / "tune" / "trials.csv", "tune"), glob=False, infer_schema_length=None),
        history=pl.read_csv(_found(reports / "train" / "history.csv", "train"), glob=False, infer_schema_length=None),
        metrics={stage: _json(reports / stage / "metrics.json", stage) for stage in _METRICS},
        live=_live(reports / "verify" / "tables"),
        source=traces.source,
        settings=settings,
        parameters=flatten({"seed": seed, "traces": used, "simulate": settings.model_dump(mode="json")}),
    )


def _table_paths() -> list[Path]:
    """The tables that the page's sections are made of, below `reports/`."""
    sources = {source for words in texts().values() if "sources" in words for source in words["sources"]}
    return sorted(
        Path(source) for source in sources if source.endswith(".parquet") and not source.startswith("verify/")
    )


def _live(folder: Path) -> dict[str, pl.DataFrame]:
    """What the verify stage found, or its reason not to look."""
    if not folder.exists():
        return {}
    skipped = (folder / "not_verified.parquet").exists()
    names = ("not_verified",) if skipped else ("link", "measured", "quality")
    return {name: pl.read_parquet(_found(folder / f"{name}.parquet", "verify"), glob=False) for name in names}


def _json(path: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_found(path, stage).read_text(encoding="utf-8"))
    return found


def _prompts(path: Path) -> pl.DataFrame:
    table = pl.read_csv(path, glob=False, infer_schema=False)  # ids may look like numbers
    return table.with_columns(pl.col("prompt_id", "domain").map_elements(plain, pl.String))


def _found(path: Path, stage: str) -> Path:
    if not path.exists():
        raise InputError(f"{path}: not found; run the stage that writes it: dvc repro {stage}")
    return path
