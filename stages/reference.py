"""Trains the small Mixture-of-Experts that makes the default self-contained."""

import polars as pl

from moe_beyond.files import replacing
from moe_beyond.tracking import stage_run


def main() -> None:
    with stage_run("reference") as run:
        output = run.root / "models" / "reference"
        source = run.params.traces.source
        history_file = run.reports / "history.csv"
        if source != "reference":
            with replacing(output) as temporary:
                temporary.mkdir()
                (temporary / "README.md").write_text(f"No reference model: traces.source is `{source}`.\n")
            metrics, steps, train, validation = {"trained_tokens": 0}, [], [], []
        else:
            from moe_beyond.reference import recipe  # noqa: PLC0415 - slow to import, not needed above

            metrics, history = recipe.make(run.params.reference, run.params.seed, run.root, output)
            steps, train, validation = history.steps, history.train_loss, history.validation_loss
        table = pl.DataFrame(
            {"step": steps, "train_loss": train, "validation_loss": validation},
            schema={"step": pl.Int64, "train_loss": pl.Float64, "validation_loss": pl.Float64},
        )
        with replacing(history_file) as temporary:
            table.write_csv(temporary)
        for row in table.iter_rows(named=True):
            losses = {name: row[name] for name in ("train_loss", "validation_loss") if row[name] is not None}
            run.log_step_metrics(losses, step=row["step"])
        run.write_metrics(metrics)


if __name__ == "__main__":
    main()
