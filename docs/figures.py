"""The figures of a finished run that the README shows: collected into one small document, and written as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from moe_beyond.params import Params
from moe_beyond.settings import read_params

PREDICTORS = (
    ("predictor", "1", "ours, ahead of each layer"),
    ("predictor", "token", "ours, ahead of the token"),
    ("token unigram", "token", "token unigram: a table of what each token used in training"),
    ("previous token", "token", "previous token"),
    ("popularity", "token", "popularity"),
)
"""Predictors of the README's table, their horizon, and what they are called there."""
DEVICES = {
    "phone_oneplus_15r": "phone, OnePlus 15R",
    "laptop_ryzen4800h": "laptop, Ryzen 4800H",
    "gpu_pcie4_wsl": "GPU, PCIe 4 under WSL",
    "phone_ufs": "phone, UFS flash",
    "laptop_nvme": "laptop, NVMe (no recording)",
    "gpu_pcie4": "GPU, PCIe 4 (no recording)",
}
OURS = {"predictor": "ours with hidden states", "predictor without hidden states": "ours without"}
CACHES = {
    "paper_lru": "the paper's replay, unchanged",
    "lru": "LRU, only uses renew",
    "anticipate": "eviction by predicted next use",
}
_ON_DEVICE = (
    "title", "predictor", "ms_per_token", "ms_per_token_low", "ms_per_token_high", "tokens_per_second",
    "stall_ms_per_token", "hit_rate", "mib_per_token", "token_step_ms", "layer_step_ms", "against_lru_ms",
    "against_lru_ms_low", "against_lru_ms_high", "against_best_ms", "against_best_ms_low", "against_best_ms_high",
    "gap_closed", "gap_closed_low", "gap_closed_high",
)  # fmt: skip


def figures(root: Path) -> dict[str, Any]:
    """The figures of a finished run that the README shows, on its last test split at the headline capacity."""
    params = read_params(root / "params.yaml", Params)
    on_device = table(root, "simulate", "on_device")
    split = on_device["split"][-1]
    slots = capacity(on_device, params.simulate.headline_capacity)
    rows = on_device.filter((pl.col("split") == split) & (pl.col("capacity_experts") == slots))
    quality = table(root, "export", "quality").filter((pl.col("phase") == "all") & (pl.col("layer") == "all"))
    unlimited = table(root, "simulate", "unlimited_link")
    unlimited = unlimited.filter((pl.col("split") == split) & (pl.col("capacity_experts") == slots))
    # where the link has no limit, ways that differ in when they request are one: that of the first device
    ours = rows.filter("ours")["policy"][0]
    paper = table(root, "simulate", "paper_replay")
    pays = table(root, "simulate", "pays").filter((pl.col("split") == split) & (pl.col("capacity_experts") == slots))
    card = json.loads((root / "reports/assess/card.json").read_text(encoding="utf-8"))
    return {
        "model": card["model_id"],
        "top_k": card["top_k"],
        "split": split,
        "capacity_experts": slots,
        "capacity_fraction": params.simulate.headline_capacity,
        "policies": rows["policy"].n_unique(),
        "latency": json.loads((root / "reports/export/latency.json").read_text(encoding="utf-8")),
        "parameters": json.loads((root / "reports/train/metrics.json").read_text(encoding="utf-8"))["parameters"],
        "devices": {
            device: device_rows(rows.filter(pl.col("device") == device))
            for device in rows["device"].unique(maintain_order=True).to_list()
        },
        "pays": pays.drop("split", "policy", "against").to_dicts(),
        "recall": [
            {"predictor": words} | {part: recall(quality, part, name, horizon) for part in ("test_in_domain", split)}
            for name, horizon, words in PREDICTORS
        ],
        "unlimited_link": unlimited.filter(pl.col("policy").is_in(["lru", "belady", ours]))
        .select("title", "hit_rate", "hit_rate_low", "hit_rate_high")
        .to_dicts(),
        "hidden": hidden(root, split),
        "paper": paper.filter(pl.col("split") == split).drop("split").to_dicts(),
        "live": live(root),
        "outs": outs((root / "dvc.lock").read_text(encoding="utf-8")),
    }


def hidden(root: Path, split: str) -> list[dict[str, Any]]:
    """What predictors recall that read hidden states, over all layers and phases; empty where the traces have none."""
    rows = table(root, "export", "hidden").filter(
        (pl.col("split") == split) & (pl.col("places") == "all") & (pl.col("phase") == "all")
    )
    measures = ("recall_at_k", "recall_on_misses")
    names = (f"{measure}{end}" for measure in measures for end in ("", "_low", "_high"))
    return rows.select("predictor", "horizon", *names, "recall_at_8", "recall_at_16", "exact_set").to_dicts()


def live(root: Path) -> dict[str, Any]:
    """What was decoded live beside what the replay says; empty where the source has no weights."""
    if not (root / "reports/verify/tables/measured.parquet").exists():
        return {}
    names = (
        "title",
        "lossy",
        *(f"{kind}{name}" for name in ("ms_per_token", "hit_rate") for kind in ("", "modelled_")),
    )
    compared = ("events", "events_that_differ", "greatest_logit_difference")
    rows = table(root, "verify", "measured").select(*names, *compared).to_dicts()
    return table(root, "verify", "link").row(0, named=True) | {"rows": rows}


def device_rows(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """LRU, the best policy without the predictor, ours and the clairvoyant bound."""
    chosen = {
        "LRU": pl.col("policy") == "lru",
        "best without the predictor": pl.col("best_without_predictor"),
        "ours": pl.col("ours"),
    }
    found = [{"row": name} | rows.filter(which).select(_ON_DEVICE).row(0, named=True) for name, which in chosen.items()]
    names = ("ms_per_token", "hit_rate", "mib_per_token")
    bound = rows.select(pl.col(f"bound_{name}").alias(name) for name in names).row(0, named=True)
    return [*found, {"row": "clairvoyant bound", **bound}]


def recall(quality: pl.DataFrame, split: str, predictor: str, horizon: str) -> list[float]:
    """Recall at k with its interval."""
    of = (pl.col("split") == split) & (pl.col("predictor") == predictor) & (pl.col("horizon") == horizon)
    return list(quality.filter(of).select("recall_at_k", "recall_low", "recall_high").row(0))


def capacity(rows: pl.DataFrame, fraction: float) -> int:
    """The capacity in experts that a share of the model stands for."""
    nearest = rows.sort((pl.col("capacity_fraction") - fraction).abs(), "capacity_experts")
    return int(nearest["capacity_experts"][0])


def table(root: Path, stage: str, name: str) -> pl.DataFrame:
    """A table of a stage."""
    return pl.read_parquet(root / "reports" / stage / "tables" / f"{name}.parquet", glob=False)


def outs(lock: str) -> dict[str, str]:
    """Digests, from the text of dvc.lock, of the outs that the figures come from."""
    stages = yaml.safe_load(lock)["stages"]
    named = [stages[stage]["outs"] for stage in ("export", "simulate", "verify") if stage in stages]
    found = {out["path"]: out["md5"] for declared in named for out in declared}
    return {path: md5 for path, md5 in found.items() if path.endswith("/tables") or path == "models/predictor"}


def block(name: str, found: dict[str, Any]) -> str:
    """A block of the README."""
    lines = [] if name == "default" else [f"**{found['model']}**, {split_words(found['split'])}.", ""]
    lines += [*device_table(found), "", *notes(found), ""]
    lines += [*live_table(found["live"]), ""] if found.get("live") else []
    lines += recall_table(found)
    lines += ["", *hidden_table(found)] if found.get("hidden") else []
    if found["paper"]:
        lines += ["", *paper_table(found)]
    return "\n".join(lines)


def device_table(found: dict[str, Any]) -> list[str]:
    """Times on each device, with what is charged and what was measured of the predictor beside them."""
    measured = found["latency"]["measured"]
    lines = [
        f"| {found['capacity_experts']} experts ({found['capacity_fraction']:.0%}) in fast memory | ms per token | "
        "tokens/s | stall, ms | hit rate on the device | MiB per token | predictor charged, ms a token + a layer | "
        "measured here |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for device, rows in found["devices"].items():
        for row in rows:
            name = row["row"] if row["row"] in ("LRU", "clairvoyant bound") else f"{row['row']}: {row['title']}"
            spread = f" ({row['ms_per_token_low']:.1f} to {row['ms_per_token_high']:.1f})" if "title" in row else ""
            lines.append(
                f"| {DEVICES.get(device, device)}: {name} | {row['ms_per_token']:.1f}{spread} | "
                f"{1e3 / row['ms_per_token']:.1f} | {stall(row)} | {row['hit_rate']:.1%} | "
                f"{row['mib_per_token']:,.0f} | "
                f"{latencies(row)} | {measured_beside(row, measured)} |"
            )
    return lines


def stall(row: dict[str, Any]) -> str:
    """Milliseconds of stall; the bound has none of its own."""
    return f"{row['stall_ms_per_token']:.1f}" if "stall_ms_per_token" in row else ""


def latencies(row: dict[str, Any]) -> str:
    """What is charged on the device."""
    token, layer = row.get("token_step_ms", 0), row.get("layer_step_ms", 0)
    return "" if not token else f"{token:.3g} + {layer:.3g}" if layer else f"{token:.3g}"


def measured_beside(row: dict[str, Any], measured: dict[str, float]) -> str:
    """What export measured on one thread of its machine, of the steps that the row charges."""
    token, layer = row.get("token_step_ms", 0), row.get("layer_step_ms", 0)
    if not token:
        return ""
    name = "token_step_ms" if row["predictor"] == "predictor" else "table_ms"
    # with hidden states where the predictor reads them
    of_layer = measured.get("hidden_step_ms") or measured["layer_step_ms"]
    return f"{measured[name]:.2g}" + (f" + {of_layer:.2g}" if layer else "")


def notes(found: dict[str, Any]) -> list[str]:
    """Ours against LRU and the best without it, and whether prefetching pays."""
    lines = []
    for device, rows in found["devices"].items():
        ours = next(row for row in rows if row["row"] == "ours")
        pays = next((row for row in found["pays"] if row["device"] == device), None)
        words = f"- {DEVICES.get(device, device)}: ours takes {difference(ours, 'against_lru_ms')} ms against LRU"
        if ours["against_best_ms"] is not None:
            words += f" and {difference(ours, 'against_best_ms')} against the best without the predictor"
        if ours["gap_closed"] is not None:
            ends = " to ".join(f"{ours[f'gap_closed_{end}']:.0%}" for end in ("low", "high"))
            words += f"; it closes {ours['gap_closed']:.0%} ({ends}) of the gap between LRU and the bound"
        if pays is not None:
            words += (
                f". Prefetching pays: {pays['answer']}; the link idles {share(pays['link_idle_share_on_demand'])} of "
            )
            words += f"the time on demand, {share(pays['prefetches_in_time'])} of the prefetches come in time, "
            words += f"{share(pays['recall_on_lru_misses'])} of LRU's misses are predicted"
        lines.append(words + ".")
    return lines


def difference(row: dict[str, Any], name: str) -> str:
    """A paired difference with its interval."""
    return f"{row[name]:+.1f} ({row[f'{name}_low']:+.1f} to {row[f'{name}_high']:+.1f})"


def share(value: float | None) -> str:
    """A share in per cent; nothing where there is none."""
    return "none" if value is None else f"{value:.0%}"


def live_table(live: dict[str, Any]) -> list[str]:
    """The live check: times and hit rates measured and modelled, events that differ."""
    lines = [
        f"| the model itself, {live['capacity']} experts in memory, link slowed to {live['gb_per_s']:.3f} GB/s | ms "
        "per token, measured | modelled | error | hit rate, measured | modelled | events that differ |",
        "| --- " * 7 + "|",
    ]
    for row in live["rows"]:
        error, differ = row["modelled_ms_per_token"] / row["ms_per_token"] - 1, row["events_that_differ"]
        events = "" if differ is None else f"{differ} of {row['events']}"
        lines.append(
            f"| {row['title']}{', lossy' if row['lossy'] else ''} | {row['ms_per_token']:.1f} | "
            f"{row['modelled_ms_per_token']:.1f} | {error:+.1%} | {row['hit_rate']:.1%} | "
            f"{row['modelled_hit_rate']:.1%} | {events} |"
        )
    most = max(row["greatest_logit_difference"] for row in live["rows"] if not row["lossy"])
    return [
        *lines,
        "",
        "**Measured** by decoding test prompts with the experts on disk, on a link that takes as long for one of them "
        f"as that of the {DEVICES.get(live['device'], live['device'])}. The time of computing is that of LRU's run, so "
        f"its error is zero by construction. Lossless policies change no logit by more than {most:.1e}. "
        "[How it is checked](docs/live.md).",
    ]


def recall_table(found: dict[str, Any]) -> list[str]:
    """Recall of the predictors."""
    near, far = "test_in_domain", found["split"]
    splits = [near] if near == far else [near, far]
    lines = [
        f"| recall@{found['top_k']} (95 % interval) | {' | '.join(map(split_words, splits))} |",
        "| --- " * (1 + len(splits)) + "|",
    ]
    for row in found["recall"]:
        cells = (f"{row[name][0]:.1%} ({row[name][1]:.1%} to {row[name][2]:.1%})" for name in splits)
        lines.append(f"| {row['predictor']} | {' | '.join(cells)} |")
    unlimited = "; ".join(f"{row['title']} {row['hit_rate']:.1%}" for row in found["unlimited_link"])
    return [
        *lines,
        "",
        f"Hit rates on an unlimited link, an upper bound that no device reaches: {unlimited}. All {found['policies']} "
        f"policies are on the page. The predictor has {found['parameters'] / 1e6:.1f} M parameters.",
    ]


def hidden_table(found: dict[str, Any]) -> list[str]:
    """Recall with hidden states by layers ahead, and on the misses of LRU."""
    rows = {(row["predictor"], row["horizon"]): row for row in found["hidden"]}
    ahead = sorted({horizon for _, horizon in rows if horizon.isdigit()}, key=int)
    lines = [
        f"| recall@{found['top_k']}, {split_words(found['split'])}: layers ahead | {' | '.join(ahead)} | "
        "on LRU's misses, 1 ahead | all right, 1 ahead |",
        "| --- " * (3 + len(ahead)) + "|",
    ]
    readers = dict.fromkeys(name for name, horizon in rows if horizon in ahead)
    for name in sorted(readers, key=lambda name: -rows[name, ahead[0]]["recall_at_k"]):
        cells = [interval(rows[name, h], "recall_at_k") if (name, h) in rows else "" for h in ahead]
        one = rows[name, ahead[0]]
        words = OURS.get(name, name)
        misses = interval(one, "recall_on_misses")
        lines.append(f"| {words} | {' | '.join(cells)} | {misses} | {one['exact_set']:.1%} |")
    return [
        *lines,
        "",
        "Over all layers: the first ones, which have no layer so far below, are our token step's in each row. "
        "The next gate is the later layer's own router on what this layer's has read. "
        "[What each part is worth](docs/ablation_hidden.md).",
    ]


def interval(row: dict[str, Any], name: str) -> str:
    """A share with its interval."""
    return f"{row[name]:.1%} ({row[f'{name}_low']:.1%} to {row[f'{name}_high']:.1%})"


def paper_table(found: dict[str, Any]) -> list[str]:
    """Ours and the paper's published predictions through the same caches, at most six experts ahead of a layer."""
    lines = [
        "| same cache for both, hit rate and MiB a token | experts | the paper's predictions, which see the whole "
        "prompt | ours, causal | difference, paired by prompt |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found["paper"]:
        sides = (
            f"{row[f'{side}_hit_rate']:.1%} ({row[f'{side}_hit_rate_low']:.1%} to {row[f'{side}_hit_rate_high']:.1%}), "
            f"{row[f'{side}_mib_per_token']:,.0f} MiB"
            for side in ("paper", "ours")
        )
        points = [100 * row[f"difference_hit_rate{end}"] for end in ("", "_low", "_high")]
        mib = [row[f"difference_mib_per_token{end}"] for end in ("", "_low", "_high")]
        lines.append(
            f"| {CACHES[row['cache']]} | {row['capacity_experts']} | {' | '.join(sides)} | {points[0]:+.1f} points "
            f"({points[1]:+.1f} to {points[2]:+.1f}), {mib[0]:+,.0f} MiB ({mib[1]:+,.0f} to {mib[2]:+,.0f}) |"
        )
    return lines


def sizes_table(rows: pl.DataFrame) -> str:
    """What the works of benchmarks/sizes.py took, largest traces last, a table a machine."""
    lines = []
    for machine in rows["machine"].unique(maintain_order=True).to_list():
        lines += ["", f"On {machine}:", "", "| shape | expert choices | work | seconds | peak GiB |"]
        lines.append("| --- | --: | --- | --: | --: |")
        before = None
        for row in rows.filter(machine=machine).sort("choices", maintain_order=True).iter_rows(named=True):
            trace = f"| {row['shape']} | {row['choices']:,} |"
            shown = "| | |" if trace == before else trace
            lines.append(f"{shown} {row['work']} | {row['seconds']:,.0f} | {row['peak_gib']:.2f} |")
            before = trace
    return "\n".join(lines[1:])


def spread(document: dict[str, Any]) -> str:
    """How far the default's figures spread over seeds, in a sentence after the document's note."""
    found: dict[str, dict[str, float]] = document["seeds"]
    shown = {
        "ms_per_token": ("{:.1f}", 1, "ms per token with ours"),
        "lru_ms_per_token": ("{:.1f}", 1, "with LRU"),
        "best_without_predictor_ms_per_token": ("{:.1f}", 1, "with the best without the predictor"),
        "gap_closed": ("{:.0f} %", 100, "of the gap closed"),
        "recall_at_k": ("{:.1f} %", 100, "recall ahead of the token"),
        "layer_recall_at_k": ("{:.1f} %", 100, "recall ahead of each layer"),
    }
    parts = []
    for name, (form, scale, words) in shown.items():
        values = [scale * run[name] for run in found.values()]
        parts.append(f"{form.format(min(values))} to {form.format(max(values))} {words}")
    return (
        f"{document['note']}Over {len(found)} seeds ({', '.join(found)}), each with a reference model, traces and "
        f"predictor of its own: {'; '.join(parts)} (another domain). Another make of processor is another such draw."
    )


def split_words(split: str) -> str:
    """A test split for people."""
    return {"test_in_domain": "same domain", "test_out_of_domain": "another domain"}[split]
