"""The comparison as a person reads it: a table in the terminal, and report.md."""

import json
from collections.abc import Sequence

from bert_cluster import cells
from bert_cluster.cells import NONE
from bert_cluster.evaluation.bootstrap import Difference
from bert_cluster.evaluation.results import Agreement, MethodResult, Results


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the comparison, one row per method. Scores and differences are in points of 100."""
    scores = list(results.methods[0].scores)
    header = ["method"]
    for name in scores:
        header += [name, "difference to full [95 %]"]
    header += ["agrees with full", "seconds", "tokens/s", "speed", "peak memory", "backend"]
    full = next((result for result in results.methods if result.method.config is None), None)
    return header, [_row(results, result, scores, full) for result in results.methods]


def terminal(results: Results) -> str:
    """The table in aligned columns, with the notes under it."""
    header, rows = table(results)
    widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
    lines = [_aligned(header, widths), "  ".join("-" * width for width in widths)]
    lines += [_aligned(row, widths) for row in rows]
    return "\n".join([results.task["title"], "", *lines, "", *(f"* {note}" for note in _notes(results))]) + "\n"


def markdown(results: Results, *, plot: str | None) -> str:
    """report.md. `plot` is the file name of the picture beside it, if there is one."""
    header, rows = table(results)
    lines = [f"# {results.task['title']}: {results.model['name']}", ""]
    lines += ["| " + " | ".join(header) + " |", "|" + "|".join("---" for _ in header) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", *(f"- {note}" for note in _notes(results)), ""]
    if plot is not None:
        lines += [f"![Scores, time and memory by method]({plot})", ""]
    lines += _settings(results)
    return "\n".join(lines) + "\n"


def _row(results: Results, result: MethodResult, scores: Sequence[str], full: MethodResult | None) -> list[str]:
    scale = 1.0 if results.task["score_unit"] == "percent" else 100.0
    row = [result.method.name]
    for name in scores:
        difference = None if result.differences is None else result.differences.get(name)
        row += [cells.score(result.scores[name], scale), _difference(difference, scale)]
    seconds = sum(result.run.seconds)
    speed = sum(full.run.seconds) / seconds if full is not None and seconds else None
    row += [
        _agreement(result.agreement),
        f"{seconds:.1f}",
        f"{result.run.tokens_per_second:,.0f}",
        NONE if speed is None else f"{speed:.2f}x",
        cells.memory(result.run.peak_memory_bytes),
        result.run.backend,
    ]
    return row


def _difference(difference: Difference | None, scale: float) -> str:
    return NONE if difference is None else cells.difference(difference.value, difference.low, difference.high, scale)


def _agreement(agreement: Agreement | None) -> str:
    return NONE if agreement is None else cells.agreement(agreement.kind, agreement.value)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]).rstrip()


def _notes(results: Results) -> list[str]:
    share = 100 * results.batches["padded_share"]
    notes = [
        (
            f"{results.data['examples']:,} examples from {results.data['source']} in {results.batches['inputs']:,} inputs "
            f"of at most {results.settings['max_seq_length']} tokens; {share:.1f} % of the tokens are padding."
        )
    ]
    if results.methods[0].scores:
        notes.append(
            "Scores are in points of 100. Brackets: paired bootstrap over the examples, 95 % interval of the difference, "
            f"{results.bootstrap['samples']:,} resamples."
        )
    else:
        notes.append("The data has no labels: no scores, only predictions, agreement and time.")
    environment = results.environment
    notes.append(
        f"Seconds are forward passes only, {environment['device_name']}, {environment['threads']} threads, "
        f"{environment['processes']} process{'' if environment['processes'] == 1 else 'es'}, {results.model['dtype']}."
    )
    for result in results.methods:
        notes += _warnings(result)
    return notes + list(results.notes)


def _warnings(result: MethodResult) -> list[str]:
    """What a reader must know before trusting the row."""
    name, calls = result.method.name, result.run.calls
    notes = []
    if result.not_finite:
        notes.append(f"{name}: {result.not_finite} inputs gave NaN or infinite outputs.")
    if calls.get("reference"):
        notes.append(f"{name} ran on the PyTorch reference, so its time says nothing: see `python -m cuda_ops`.")
    if calls.get("exact"):
        notes.append(f"{name}: {calls['exact']} of {sum(calls.values())} attention calls ran exact attention instead.")
    return notes


def _settings(results: Results) -> list[str]:
    configs = {
        result.method.name: result.method.config.to_dict()
        for result in results.methods
        if result.method.config is not None
    }
    return [
        "## Settings",
        "",
        "```json",
        json.dumps({"model": results.model, "settings": results.settings, "cluster_configs": configs}, indent=2),
        "```",
    ]
