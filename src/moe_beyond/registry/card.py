"""The model card: what a person should know before using a registered predictor."""

from __future__ import annotations

from typing import Any

from moe_beyond.registry.drift.window import Measures


def model_card(manifest: dict[str, Any], advice: dict[str, Any], metrics: dict[str, Any], measures: Measures) -> str:
    """Markdown from the files that lie beside it.

    Args:
        manifest: `bundle.json`.
        advice: `advice.json`.
        metrics: `metrics.json`.
        measures: Of the window.
    """
    recalls = metrics["export"]["recall_at_k"]
    k = manifest["top_k"]
    rows = [
        f"| {split} | {scores['predictor']:.1%} | {scores['token_unigram']:.1%} | {scores['popularity']:.1%} |"
        for split, scores in recalls.items()
        if split.startswith("test")
    ]
    commit = manifest["git"].get("git.commit", "outside a repository")
    dirty = " with changes that were not committed" if manifest["git"].get("git.dirty") == "true" else ""
    lines = [
        f"# Expert predictor for {manifest['model_id']}",
        "",
        f"Says which of {manifest['num_experts']} experts each of {len(manifest['layer_numbers'])} Mixture-of-Experts "
        f"layers will use (top-{k}), ahead of a token. Causal: it sees the token and the routing of earlier ones.",
        "",
        f"| split | recall@{k} | token unigram | popularity |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        "Token unigram is a table of what each token used in training: a predictor must beat it to be worth its time.",
        "",
        "## Where it helps",
        "",
        f"Offloading this model: **{advice['suitability']['verdict']}**.",
        *(f"- {reason}" for reason in advice["suitability"]["reasons"]),
        "",
        *_policies(advice),
        "",
        "## Limits",
        "",
        f"- Learned from: {manifest['source_of_traces']} ({manifest['licence_of_traces']}). Other prompts, another "
        "fine-tune or another precision change the routing: `moe-beyond drift` measures by how much.",
        f"- In its own domain, on prompts it did not learn from: recall@{k} {measures.recall_at_k:.1%}, hit rate "
        f"{measures.hit_rate:.1%} with {measures.capacity_experts} experts in the cache.",
        "- Times are modelled from a described device, not measured on one.",
        "",
        "## Origin",
        "",
        f"Commit {commit}{dirty}, seed {manifest['seed']}. Digests of traces, splits and graphs are in `bundle.json`.",
    ]
    return "\n".join(lines) + "\n"


def _policies(advice: dict[str, Any]) -> list[str]:
    if not advice["policies"]:
        return [f"Policies were not timed on {advice['device']}: add it to simulate.devices."]
    split = advice["policies"][0]["split"]
    of_split = [row for row in advice["policies"] if row["split"] == split]
    # a policy that computes with fewer or other experts answers differently: it is no rival in time alone
    lossless = [row for row in of_split if not row["lossy"]]
    title = (
        f"Fastest on {advice['device']} with {advice['capacity_experts']} experts in the cache, {split}, of the "
        "policies that change no answer:"
    )
    rows = [
        f"| {row['title']} | {row['ms_per_token']:.3g} | {row['hit_rate']:.1%} | {row['token_step_ms']:g} and "
        f"{row['layer_step_ms']:g} |"
        for row in lossless[:5]
    ]
    heading = "| policy | ms per token | hit rate there | charged for the predictor, ms a token and a layer |"
    return [title, "", heading, "| --- | --- | --- | --- |", *rows]
