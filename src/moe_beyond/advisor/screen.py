"""An advice on one screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

_COLOURS = {"yes": "green", "not needed": "green", "with more memory": "yellow", "no": "red"}
_ROWS = {"best": "best", "runner_up": "runner-up", "today": "engines today"}


def print_advice(found: dict[str, Any]) -> None:
    """Print what `simulator.advice.document` made."""
    console, verdict, memory = Console(), found["verdict"], found["memory"]
    colour = _COLOURS[verdict["answer"]]
    title = f"{found['model']} on {found['device']}"
    console.print(Panel(f"[bold {colour}]{verdict['answer']}[/]: {verdict['reason']}", title=title, expand=False))
    assumed = " (assumed)" if memory["dense_is_assumed"] else ""
    has = "" if memory["device_gib"] is None else f", the device has {memory['device_gib']:g}"
    console.print(
        f"Cache {memory['cache_mib']:.0f} MiB = {memory['capacity_experts']} experts "
        f"({100 * memory['capacity_fraction']:.1f} %), dense parts {memory['dense_mib']:.0f} MiB{assumed}: "
        f"{memory['needed_gib']:.1f} GiB{has}."
    )
    for name, label in _ROWS.items():
        console.print(f"[bold]{label:14}[/]{found[name]['plan']}", highlight=False)
    console.print(_plans(found))
    speed, best = found["speed"], found["best"]
    console.print(
        f"Best between {best['ms_per_token_low']:.1f} and {best['ms_per_token_high']:.1f} ms (95 %). "
        f"All in memory {speed['all_resident_ms_per_token']:.1f} ms; perfect foresight at this budget "
        f"{speed['clairvoyant_bound_ms_per_token']:.1f} ms, of which the best plan reaches "
        f"{100 * speed['share_of_bound']:.0f} %."
    )
    if best["slots_per_layer"] is not None:
        console.print("Experts a layer: " + " ".join(map(str, best["slots_per_layer"])))
    if found["more_memory"]:
        console.print("More memory: " + "; ".join(map(_more, found["more_memory"])))
    prompts = found["prompts"]
    console.print(
        f"Chosen among {len(found['tried'])} plans on {prompts['chosen_on']} prompts after learning from "
        f"{prompts['learned_on']}; the times above are of {prompts['confirmed_on']} others."
    )
    for note in found["notes"]:
        console.print(f"[dim]- {note}[/]")


def _plans(found: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("ms/token", "tokens/s", "stall ms", "hit rate", "MiB/token", "slower by ms"):
        table.add_column(heading, justify="right")
    for name, label in _ROWS.items():
        row = found[name]
        slower = row.get("slower_by_ms")
        behind = "" if slower is None else f"{slower['value']:.1f} ({slower['low']:.1f} to {slower['high']:.1f})"
        table.add_row(
            label,
            f"{row['ms_per_token']:.1f}",
            f"{row['tokens_per_second']:.2f}",
            f"{row['stall_ms_per_token']:.1f}",
            f"{100 * row['hit_rate']:.1f} %",
            f"{row['mib_per_token']:.1f}",
            behind,
        )
    return table


def _more(row: dict[str, Any]) -> str:
    size = f"{row['budget_mib']:.0f} MiB" if row["budget_mib"] is not None else f"{row['budget_experts']} experts"
    return f"{size} {row['tokens_per_second']:.2f} tokens/s"
