"""Turns the tables of all stages into the page and its figures."""

from typing import Any

from moe_beyond.params import Params, load_params
from moe_beyond.reporting.page import render_report
from moe_beyond.settings import flatten
from moe_beyond.tracking import stage_run
from moe_beyond.tracking.stage import context_tags

CODE = ("git.commit", "git.dirty", "dvc_exp_name", "mlflow_run")


def main() -> None:
    with stage_run("report", load_params) as run:
        render_report(
            run.root,
            run.params.report,
            headline_capacity=run.params.simulate.headline_capacity,
            run_summary=facts(run.params, {**context_tags(run.stage, run.root), "mlflow_run": run.run_id}),
        )


def facts(params: Params, tags: dict[str, str]) -> dict[str, Any]:
    versions = {key.removeprefix("version."): value for key, value in tags.items() if key.startswith("version.")}
    source = params.traces.source
    # sections that the chosen source of traces does not read would only mislead
    stand_in = ("reference", "simulate.timed_expert_mib")
    unread = {"reference": ("traces.transformers", "traces.import"), "transformers": (*stand_in, "traces.import")}
    skipped = unread.get(source, (*stand_in, "traces.transformers"))
    parameters = flatten(params.model_dump(by_alias=True, mode="json"))
    return {
        "Code": {key: tags[key] for key in CODE if key in tags},
        "Parameters": {key: value for key, value in parameters.items() if not key.startswith(skipped)},
        "Libraries": versions,
    }


if __name__ == "__main__":
    main()
