"""Say what a part of the page is made from: runs, machine, seconds, and what was not run."""

from collections.abc import Sequence
from statistics import median

from experiments.runner.found import Gaps, gaps, planned
from experiments.runner.plan import Result, Study


def made(study: Study, results: Sequence[Result], commands: Sequence[str], results_file: str) -> str:
    """Return the paragraph on how the results were made; `results_file` is a Markdown link."""
    shown = "".join(f"\n    {command}" for command in commands)
    if not results:
        return f"No run has been made. Every result will be a line of {results_file}, made by\n{shown}"
    final = [result for result in results if result["kind"] == "final"]
    tuning = {(each["size"], each["arm"], each["settings"]["training"]["learning_rate"]) for each in results
              if each["kind"] == "tuning"}  # fmt: skip
    machines, torch, dates = (sorted({str(each[key]) for each in results}) for key in ("machine", "torch", "date"))
    seconds = [each["seconds"] for each in results]
    goal = sum(len(planned(study, size)) for size in {stage.size for stage in study.stages})
    took = f", the median reported run {median(each['seconds'] for each in final):,.0f}" if final else ""
    return (
        f"{len({(each['size'], each['arm'], each['seed']) for each in final})} of {goal} planned reported runs, and"
        f" {len(tuning)} short ones that chose learning rates; {', '.join(machines)}; torch {', '.join(torch)};"
        f" {' to '.join(dict.fromkeys((dates[0], dates[-1])))}. Several processes shared a device; together they took"
        f" {sum(seconds):,.0f} seconds{took}. Every result is a line of {results_file}, made by\n{shown}"
    )


def not_run(study: Study, results: Sequence[Result]) -> str:
    """Return what was planned and has no result, for every size."""
    lines = [line for size in study.sizes if (line := _size(study, size, gaps(study, size, results)))]
    return "\n".join(lines) if lines else "Every planned run was made."


def _size(study: Study, size: str, missing: Gaps) -> str:
    wanted = planned(study, size)
    if not missing.not_run and not missing.diverged:
        return ""
    if set(missing.not_run) == wanted:
        return f"- `{size}`: none of {len(wanted)} reported runs was made."
    parts = []
    if missing.not_run:
        parts.append(f"{len(missing.not_run)} of {len(wanted)} reported runs were not made: {names(missing.not_run)}")
    if missing.diverged:
        parts.append(f"diverged, and so in no table: {names(missing.diverged)}")
    return f"- `{size}`: {'; '.join(parts)}."


def names(runs: Sequence[tuple[str, int]]) -> str:
    """Return runs by arm with their seeds."""
    arms: dict[str, list[str]] = {}
    for arm, seed in runs:
        arms.setdefault(arm, []).append(str(seed))
    return ", ".join(f"`{arm}` {'seed' if len(of) == 1 else 'seeds'} {', '.join(of)}" for arm, of in arms.items())
