"""The figures: one function each, a table in, an Altair chart out.

Colours are tokens that `theme.paint` resolves. Every chart takes the width of its container on the page and a fixed one
as PNG. Line dash repeats what colour says, and the page prints the numbers below each chart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import polars as pl

from moe_beyond.reporting.names import Look, looks

Chart = alt.Chart | alt.LayerChart | alt.FacetChart
_HEIGHT = 300
_CURVE_POINTS = 160  # a curve of thousands of capacities looks the same with these


def series_scales(names: Sequence[str]) -> tuple[alt.Color, alt.StrokeDash]:
    """Colour and dash by the column `series` of labels, for identifiers in the order of the legend."""
    styles: list[Look] = list(looks(list(names)).values())
    domain = [style.label for style in styles]
    # no word about the legend: the page has its own and switches this one off, the PNG keeps it
    colour = alt.Color("series:N", scale=alt.Scale(domain=domain, range=[style.colour for style in styles]))
    dash = alt.StrokeDash("series:N", scale=alt.Scale(domain=domain, range=[style.dash for style in styles]))
    return colour, dash


def with_labels(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """Add `series`, the label of the identifier in `column`."""
    names = frame[column].unique().to_list()
    mapping = {name: style.label for name, style in looks(names).items()}
    return frame.with_columns(pl.col(column).replace_strict(mapping, return_dtype=pl.String).alias("series"))


def _lines(
    frame: pl.DataFrame, names: Sequence[str], x: alt.X, y: alt.Y, tooltip: list[alt.Tooltip], *, points: bool = True
) -> Chart:
    colour, dash = series_scales(names)
    # later lines cover earlier ones: the first of the legend comes last
    places = {style.label: place for place, style in enumerate(looks(list(names)).values())}
    frame = frame.sort(pl.col("series").replace_strict(places), descending=True, maintain_order=True)
    base = alt.Chart(frame).encode(x=x, y=y, color=colour, tooltip=tooltip)
    layers: list[Chart] = [base.mark_line().encode(strokeDash=dash)]
    if points:
        layers.append(base.mark_point(size=30))
    # a pointer finds a large invisible point more easily than a small visible one
    layers.append(base.mark_point(size=260, opacity=0))
    return alt.layer(*layers)


def finish(chart: Chart, height: int = _HEIGHT) -> Chart:
    """As wide as its container, so high."""
    return chart.properties(width="container", height=height)


def _cycle_mark(fraction: float | None, experts: int | None) -> list[Chart]:
    if fraction is None or not 0 < fraction < 1:
        return []
    mark = alt.Chart(pl.DataFrame({"x": [fraction], "text": [f"one token cycle, {experts} experts"]}))
    return [
        mark.mark_rule(style="mark-rule").encode(x="x:Q"),
        mark.mark_text(style="mark-text").encode(x="x:Q", y=alt.value(2), text="text:N"),
    ]


def _capacity_axis(title: str = "capacity, share of the model's experts", *, log: bool = False) -> alt.X:
    return alt.X("capacity_fraction:Q", title=title, axis=alt.Axis(format=".0%"), scale=alt.Scale(zero=not log))


def hit_rate(replay: pl.DataFrame, policies: Sequence[str], cycle: float | None, cycle_experts: int | None) -> Chart:
    """Hit rate over capacity of one split's replay, a line a policy, with the one-token-cycle mark.

    Args:
        replay: Rows of replay.csv of one split.
        policies: Order of the legend.
        cycle: Experts of one token in all layers, as a share of the model's experts; None leaves the mark out.
        cycle_experts: The same as a count, for the mark's text.
    """
    frame = with_labels(replay, "policy").select(
        "series", "capacity_fraction", "capacity_experts", "hit_rate", "mib_per_token"
    )
    tooltip = [
        alt.Tooltip("series:N", title="policy"),
        alt.Tooltip("capacity_experts:Q", title="experts", format=","),
        alt.Tooltip("capacity_fraction:Q", title="capacity", format=".1%"),
        alt.Tooltip("hit_rate:Q", title="hit rate", format=".1%"),
        alt.Tooltip("mib_per_token:Q", title="MiB per token", format=".3~f"),
    ]
    y = alt.Y("hit_rate:Q", title="hit rate", axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1]))
    return finish(alt.layer(*_cycle_mark(cycle, cycle_experts), _lines(frame, policies, _capacity_axis(), y, tooltip)))


def bytes_per_token(
    replay: pl.DataFrame, policies: Sequence[str], cycle: float | None, cycle_experts: int | None
) -> Chart:
    """MiB moved per token over capacity, demand and prefetch together; arguments as in `hit_rate`."""
    frame = with_labels(replay, "policy").select("series", "capacity_fraction", "capacity_experts", "mib_per_token")
    tooltip = [
        alt.Tooltip("series:N", title="policy"),
        alt.Tooltip("capacity_experts:Q", title="experts", format=","),
        alt.Tooltip("mib_per_token:Q", title="MiB per token", format=".3~f"),
    ]
    y = alt.Y("mib_per_token:Q", title="MiB moved per token", scale=alt.Scale(zero=True))
    return finish(alt.layer(*_cycle_mark(cycle, cycle_experts), _lines(frame, policies, _capacity_axis(), y, tooltip)))


def recall_by_layer(quality: pl.DataFrame, predictors: Sequence[str], k: int | None) -> Chart:
    """recall@k over layers, a line a predictor, for one split's rows with a layer number."""
    frame = with_labels(quality, "predictor").select(
        "series", pl.col("layer").cast(pl.Int64), pl.col("recall_at_k").alias("recall")
    )
    name = f"recall@{k}" if k else "recall@k"
    tooltip = [
        alt.Tooltip("series:N", title="predictor"),
        alt.Tooltip("layer:O", title="layer"),
        alt.Tooltip("recall:Q", title=name, format=".1%"),
    ]
    x = alt.X(
        "layer:Q", title="layer", axis=alt.Axis(format="d", tickMinStep=1), scale=alt.Scale(zero=False, nice=False)
    )
    y = alt.Y("recall:Q", title=name, axis=alt.Axis(format=".0%"), scale=alt.Scale(domainMin=0))
    return finish(_lines(frame, predictors, x, y, tooltip))


def recall_overall(
    quality: pl.DataFrame, predictors: Sequence[str], splits: Sequence[tuple[str, str]], k: int | None
) -> Chart:
    """recall@k of each predictor on each split as a dot with its interval, where the table has one.

    Args:
        quality: Rows over all phases and layers, one a split and predictor.
        predictors: Order from top to bottom.
        splits: Identifier and label of each split; the shape of the dot tells them apart.
        k: The router's top-k, for the axis.
    """
    styles = looks(list(predictors))
    order = [style.label for style in styles.values()]
    columns = ["recall_at_k", *(name for name in ("recall_low", "recall_high") if name in quality.columns)]
    frame = with_labels(quality, "predictor").select(
        "series", pl.col("split").replace_strict(dict(splits), default=None).alias("on"), *columns
    )
    names = [name for _, name in splits]
    colour = alt.Color(
        "series:N", scale=alt.Scale(domain=order, range=[style.colour for style in styles.values()]), legend=None
    )
    name = f"recall@{k}" if k else "recall@k"
    y = alt.Y("series:N", title=None, sort=order, axis=alt.Axis(labelLimit=180, labelColor="@ink"))
    x = alt.X("recall_at_k:Q", title=name, axis=alt.Axis(format=".0%", grid=True), scale=alt.Scale(domainMin=0))
    tooltip = [
        alt.Tooltip("series:N", title="predictor"),
        *(alt.Tooltip(f"{column}:Q", title=column.replace("recall_at_k", name), format=".2%") for column in columns),
    ]
    offset = alt.YOffset("on:N", sort=names, scale=alt.Scale(paddingOuter=0.6))
    shape = alt.Shape(
        "on:N",
        scale=alt.Scale(domain=names, range=["circle", "diamond", "square", "cross"][: len(names)]),
        legend=alt.Legend(symbolType="circle", symbolSize=90, symbolFillColor="@muted", symbolStrokeColor="@muted")
        if len(names) > 1
        else None,
    )
    base = alt.Chart(frame).encode(y=y, yOffset=offset, color=colour, tooltip=["on:N", *tooltip])
    layers: list[Chart] = [base.mark_point(size=90, opacity=1).encode(x=x, shape=shape)]
    if {"recall_low", "recall_high"} <= set(columns):
        layers.insert(
            0, base.mark_rule(strokeWidth=2.5).encode(x=alt.X("recall_low:Q", title=name), x2="recall_high:Q")
        )
    return finish(alt.layer(*layers), 24 * len(order) * len(names) + 20)


def reliability(bins: pl.DataFrame, splits: Sequence[str]) -> Chart:
    """Observed share over stated probability, a line a split, with the diagonal of a predictor that keeps its word."""
    frame = with_labels(bins, "split").select("series", "mean_probability", "observed_share", "count")
    tooltip = [
        alt.Tooltip("series:N", title="split"),
        alt.Tooltip("mean_probability:Q", title="stated", format=".1%"),
        alt.Tooltip("observed_share:Q", title="came true", format=".1%"),
        alt.Tooltip("count:Q", title="statements", format=","),
    ]
    axis, whole = alt.Axis(format=".0%"), alt.Scale(domain=[0, 1])
    x = alt.X("mean_probability:Q", title="stated probability", axis=axis, scale=whole)
    y = alt.Y("observed_share:Q", title="share that came true", axis=axis, scale=whole)
    ends = pl.DataFrame({"stated": [0.0, 1.0], "came": [0.0, 1.0]})
    diagonal = (
        alt.Chart(ends).mark_line(color="@muted", strokeWidth=1, strokeDash=[2, 3]).encode(x="stated:Q", y="came:Q")
    )
    return finish(alt.layer(diagonal, _lines(frame, splits, x, y, tooltip)))


def coverage(widths: pl.DataFrame, splits: Sequence[str], k: int | None) -> Chart:
    """Share of true experts among the most probable ones over their number, a line a split, the router's k marked."""
    frame = with_labels(widths, "split").select("series", "width", "recall")
    tooltip = [
        alt.Tooltip("series:N", title="split"),
        alt.Tooltip("width:Q", title="experts named"),
        alt.Tooltip("recall:Q", title="coverage", format=".1%"),
    ]
    x = alt.X("width:Q", title="experts named in a layer", axis=alt.Axis(format="d", tickMinStep=1))
    y = alt.Y("recall:Q", title="true experts covered", axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1]))
    mark: list[Chart] = []
    if k:
        rule = alt.Chart(pl.DataFrame({"x": [k], "text": [f"the router uses {k}"]}))
        mark = [
            rule.mark_rule(style="mark-rule").encode(x="x:Q"),
            rule.mark_text(style="mark-text").encode(x="x:Q", y=alt.value(_HEIGHT - 16), text="text:N"),
        ]
    return finish(alt.layer(*mark, _lines(frame, splits, x, y, tooltip)))


def heat_map(popularity: pl.DataFrame, num_experts: int) -> Chart:
    """Layers by experts: how often an expert is chosen, as a multiple of the even share 1/E."""
    # one number a cell: a large model has tens of thousands, and all of them travel in the page
    frame = popularity.select("layer", "expert", (pl.col("share") * num_experts).round(3).alias("fold"))
    layers = frame["layer"].n_unique()
    chart = (
        alt.Chart(frame)
        .transform_calculate(share=alt.datum.fold / num_experts)
        .mark_rect()
        .encode(
            x=alt.X("expert:O", title="expert", axis=alt.Axis(labelOverlap=True, labelAngle=0, ticks=False)),
            y=alt.Y("layer:O", title="layer", axis=alt.Axis(labelOverlap=True)),
            color=alt.Color(
                "fold:Q",
                title="multiple of an even share",
                scale=alt.Scale(range="heatmap", interpolate="lab", domainMin=0),
                legend=alt.Legend(type="gradient", gradientLength=220, format=".1~f", titleLimit=240),
            ),
            tooltip=[
                alt.Tooltip("layer:O"),
                alt.Tooltip("expert:O"),
                alt.Tooltip("share:Q", title="share of tokens' choices", format=".2%"),
                alt.Tooltip("fold:Q", title="multiple of even", format=".2f"),
            ],
        )
    )
    return finish(chart, max(120, min(520, 22 * layers)))


def entropy_by_layer(layers: pl.DataFrame) -> Chart:
    """Entropy of expert popularity in each layer as a share of its maximum: 1 means that no expert is a favourite."""
    frame = layers.select(
        "layer", "entropy_bits", (pl.col("entropy_bits") / pl.col("max_entropy_bits")).alias("evenness")
    )
    measures = {"evenness": "evenness of popularity"}
    if "previous_token_overlap" in layers.columns:
        frame = frame.with_columns(layers["previous_token_overlap"])
        measures |= {"previous_token_overlap": "overlap with previous token"}
    long = frame.unpivot(on=list(measures), index="layer", variable_name="measure", value_name="value").with_columns(
        pl.col("measure").replace_strict(measures)
    )
    domain = list(measures.values())
    base = alt.Chart(long).encode(
        x=alt.X(
            "layer:Q", title="layer", axis=alt.Axis(format="d", tickMinStep=1), scale=alt.Scale(zero=False, nice=False)
        ),
        y=alt.Y("value:Q", title="share", axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("measure:N", scale=alt.Scale(domain=domain, range=["@blue", "@vermilion"][: len(domain)])),
        tooltip=["layer:O", "measure:N", alt.Tooltip("value:Q", format=".1%")],
    )
    dash = alt.StrokeDash("measure:N", scale=alt.Scale(domain=domain, range=[[1, 0], [6, 3]][: len(domain)]))
    return finish(alt.layer(base.mark_line().encode(strokeDash=dash), base.mark_point(size=30)))


def hit_curves(curves: pl.DataFrame, policies: Sequence[str], cycle: float | None, cycle_experts: int | None) -> Chart:
    """Hit rate at every capacity, from one pass over the trace; arguments as in `hit_rate`."""
    parts = [thin(part) for (_,), part in curves.group_by("policy", maintain_order=True)]
    frame = with_labels(pl.concat(parts), "policy").select(
        "series", "capacity_experts", "capacity_fraction", "hit_rate"
    )
    tooltip = [
        alt.Tooltip("series:N", title="policy"),
        alt.Tooltip("capacity_experts:Q", title="experts", format=","),
        alt.Tooltip("hit_rate:Q", title="hit rate", format=".1%"),
    ]
    y = alt.Y("hit_rate:Q", title="hit rate", axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1]))
    lines = _lines(frame, policies, _capacity_axis(), y, tooltip, points=False)
    return finish(alt.layer(*_cycle_mark(cycle, cycle_experts), lines))


def reuse_distances(distances: pl.DataFrame) -> Chart:
    """Share of accesses whose expert was last used in that layer at most so many tokens ago (log scale)."""
    frame = thin(distances).select("distance", "cumulative_share")
    x = alt.X(
        "distance:Q",
        title="tokens since its last use in the prompt",
        scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(format=",d"),
    )
    y = alt.Y(
        "cumulative_share:Q", title="share of accesses", axis=alt.Axis(format=".0%"), scale=alt.Scale(domain=[0, 1])
    )
    tooltip = [
        alt.Tooltip("distance:Q", title="tokens", format=","),
        alt.Tooltip("cumulative_share:Q", title="share", format=".1%"),
    ]
    base = alt.Chart(frame).encode(x=x, y=y, tooltip=tooltip)
    line = base.mark_line(interpolate="step-after", color="@blue")
    return finish(alt.layer(line, base.mark_point(size=260, opacity=0)))


def loss_curves(history: pl.DataFrame) -> Chart:
    """Training and validation loss by epoch."""
    measures = {"train_loss": "training loss", "validation_loss": "validation loss"}
    long = history.unpivot(on=list(measures), index="epoch", variable_name="measure", value_name="value").with_columns(
        pl.col("measure").replace_strict(measures)
    )
    return _measures(long.drop_nulls("value"), list(measures.values()), "binary cross-entropy", ".4~f", zero=False)


def recall_curve(history: pl.DataFrame) -> Chart:
    """Validation recall@k by epoch."""
    long = history.select("epoch", pl.lit("validation recall@k").alias("measure"), value="validation_recall_at_k")
    return _measures(long.drop_nulls("value"), ["validation recall@k"], "recall@k", ".1%", zero=False)


def _measures(long: pl.DataFrame, domain: list[str], title: str, number: str, *, zero: bool) -> Chart:
    colours, dashes = ["@blue", "@vermilion"], [[1, 0], [6, 3]]
    base = alt.Chart(long).encode(
        x=alt.X(
            "epoch:Q", title="epoch", axis=alt.Axis(format="d", tickMinStep=1), scale=alt.Scale(zero=False, nice=False)
        ),
        y=alt.Y("value:Q", title=title, axis=alt.Axis(format=number), scale=alt.Scale(zero=zero)),
        color=alt.Color("measure:N", scale=alt.Scale(domain=domain, range=colours[: len(domain)])),
        tooltip=["epoch:Q", "measure:N", alt.Tooltip("value:Q", format=number)],
    )
    dash = alt.StrokeDash("measure:N", scale=alt.Scale(domain=domain, range=dashes[: len(domain)]))
    return finish(alt.layer(base.mark_line().encode(strokeDash=dash), base.mark_point(size=30)), 240)


def pareto(trials: pl.DataFrame) -> Chart:
    """Trials of the size search: latency against validation recall, the front joined, the chosen one ringed."""
    kinds = {"front": "on the Pareto front", "other": "dominated"}
    domain = list(kinds.values())
    base = alt.Chart(trials).encode(
        x=alt.X("latency_ms:Q", title="latency of a token step, ms", scale=alt.Scale(zero=False)),
        y=alt.Y("recall_at_k:Q", title="validation recall@k", axis=alt.Axis(format=".1%"), scale=alt.Scale(zero=False)),
    )
    hidden = [name for name in ("trial", "width", "depth", "heads") if name in trials.columns]
    tooltip = [
        *hidden,
        alt.Tooltip("recall_at_k:Q", format=".2%"),
        alt.Tooltip("latency_ms:Q", format=".3f"),
        alt.Tooltip("parameters:Q", format=","),
    ]
    points = base.mark_point(size=80).encode(
        color=alt.Color(
            "kind:N",
            scale=alt.Scale(domain=domain, range=["@blue", "@grey"]),
            legend=alt.Legend(symbolType="circle", symbolSize=90),
        ),
        tooltip=tooltip,
    )
    front = base.transform_filter(alt.datum.kind == kinds["front"]).mark_line(color="@blue", strokeWidth=1.25)
    ring = base.transform_filter("datum.chosen_trial").mark_point(style="ring")
    return finish(alt.layer(front, points, ring))


def thin(frame: pl.DataFrame, points: int = _CURVE_POINTS) -> pl.DataFrame:
    """At most `points` rows, evenly spread, first and last kept."""
    if frame.height <= points:
        return frame
    rows = sorted({round(i * (frame.height - 1) / (points - 1)) for i in range(points)})
    return frame[rows]


def step_latency(timing: pl.DataFrame, policies: Sequence[str]) -> Chart:
    """Milliseconds per token over capacity on one device and split."""
    frame = with_labels(timing, "policy")
    tooltip = [
        alt.Tooltip("series:N", title="policy"),
        alt.Tooltip("capacity_experts:Q", title="experts", format=","),
        alt.Tooltip("ms_per_token:Q", title="ms per token", format=".3~f"),
        alt.Tooltip("tokens_per_second:Q", title="tokens per second", format=".2~f"),
    ]
    x = alt.X("capacity_experts:Q", title="capacity, experts", axis=alt.Axis(format=",d"))
    y = alt.Y("ms_per_token:Q", title="ms per token", scale=alt.Scale(zero=True))
    return finish(_lines(frame, policies, x, y, tooltip))


def time_by_bandwidth(times: pl.DataFrame, policies: Sequence[str], break_even: Mapping[float, str]) -> Chart:
    """Milliseconds per token over the link's bandwidth, both logarithmic.

    Args:
        times: Columns policy, bandwidth_gb_per_s, ms_per_token.
        policies: Order of the legend.
        break_even: Bandwidths in GB/s where ours breaks even, and on which side it pays; each is marked.
    """
    frame = with_labels(times, "policy").select("series", "bandwidth_gb_per_s", "ms_per_token")
    tooltip = [
        alt.Tooltip("series:N", title="policy"),
        alt.Tooltip("bandwidth_gb_per_s:Q", title="GB/s", format=".3~f"),
        alt.Tooltip("ms_per_token:Q", title="ms per token", format=".3~f"),
    ]
    log = alt.Scale(type="log", nice=False)
    x = alt.X("bandwidth_gb_per_s:Q", title="bandwidth, GB/s", scale=log, axis=alt.Axis(format="~g", tickCount=5))
    y = alt.Y("ms_per_token:Q", title="ms per token", scale=log, axis=alt.Axis(format="~g"))
    layers: list[Chart] = []
    if break_even:
        words = [f"pays {side} {value:.3g} GB/s" for value, side in break_even.items()]
        mark = alt.Chart(pl.DataFrame({"x": list(break_even), "text": words}))
        layers = [
            mark.mark_rule(style="mark-rule").encode(x="x:Q"),
            mark.mark_text(style="mark-text").encode(x="x:Q", y=alt.value(2), text="text:N"),
        ]
    return finish(alt.layer(*layers, _lines(frame, policies, x, y, tooltip)))
