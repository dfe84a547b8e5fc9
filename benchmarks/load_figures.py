"""What the answers of `benchmarks.load` say: figures, tables, and the file of results."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.load_client import Answer, Step, Watched
from benchmarks.recordings import Utterance

GOOD_S = 2.0  # an answer that comes later is of no use
MIN_RATIO, MAX_DRIFT = 1.5, 0.05  # asked for: goodput of elastic over fixed; memory
_COLUMNS = ("at_s", "step", "status", "latency_s", "scale", "degraded", "errors", "words")  # of requests
HARD = 10.0  # multiple of the capacity at which nothing but 200 and 429 may come


def rows_of(answers: Sequence[Answer], clips: Sequence[Utterance]) -> list[dict[str, Any]]:
    """The answers for the file of results: of texts only how many words are wrong."""
    from mtsk.evaluation.wer import word_errors

    rows: list[dict[str, Any]] = []
    for each in answers:
        row: dict[str, Any] = {"at_s": round(each.at_s, 3), "step": each.step, "status": each.status}
        row["latency_s"] = round(each.latency_s, 3)
        if each.status == 200:
            errors = word_errors(clips[each.clip].text, each.text)
            row |= {"scale": each.scale, "degraded": each.is_degraded, "errors": errors.total, "words": errors.words}
        rows.append(row)
    return rows


def summary(rows: Sequence[Mapping[str, Any]], duration_s: float) -> dict[str, Any]:
    """Figures of requests that came within a while.

    Args:
        rows: see `rows_of`.
        duration_s: the while.
    """
    answered = [row for row in rows if row["status"] == 200]
    latencies_s = [row["latency_s"] for row in answered]
    num_words = sum(row["words"] for row in answered)
    return {
        "requests": len(rows),
        "statuses": dict(sorted(Counter(str(row["status"]) for row in rows).items())),
        "goodput_per_s": sum(each <= GOOD_S for each in latencies_s) / duration_s,
        "answered_per_s": len(answered) / duration_s,
        "latency_s": {str(q): float(np.quantile(latencies_s, q / 100)) for q in (50, 95, 100)} if answered else {},
        "wer": sum(row["errors"] for row in answered) / num_words if num_words else None,
        "degraded": sum(row["degraded"] for row in answered) / len(answered) if answered else 0.0,
        "scales": dict(Counter(row["scale"] for row in answered).most_common()),
    }


def recovery_s(watched: Mapping[str, Sequence[float]], steps: Sequence[Step]) -> float | None:
    """How long after the last step but one the server reads new requests as they ask again; None if it does not.

    Args:
        watched: `at_s`, and the degradation `level` at these times.
        steps: of load.
    """
    begin_s = sum(step.duration_s for step in steps[:-1])
    pairs = zip(watched["at_s"], watched.get("level", ()), strict=False)
    return next((at_s - begin_s for at_s, level in pairs if at_s >= begin_s and level == 0), None)


def run_of(
    answers: Sequence[Answer], watched: Watched, steps: Sequence[Step], clips: Sequence[Utterance]
) -> dict[str, Any]:
    """One run for the file of results."""
    rows = rows_of(answers, clips)
    per_step = [summary([row for row in rows if row["step"] == i], step.duration_s) for i, step in enumerate(steps)]
    names = watched.numbers[0] if watched.numbers else {}
    told = {"at_s": [round(each, 2) for each in watched.at_s]}
    told |= {name: [round(numbers[name], 2) for numbers in watched.numbers] for name in names}
    return {
        "steps": [
            {"multiple": step.multiple, "duration_s": step.duration_s, **figures}
            for step, figures in zip(steps, per_step, strict=True)
        ],
        "recovery_s": recovery_s(told, steps) if len(steps) > 1 and steps[-1].multiple < 1 else None,
        "watched": told,
        "requests": rows,
    }


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """`results.json`, a line for each request, and the tables."""
    slim = {
        **results,
        "columns": _COLUMNS,
        "runs": {name: {**run, "requests": []} for name, run in results["runs"].items()},
    }
    text = json.dumps(slim, indent=1)
    for run in results["runs"].values():
        rows = ([row.get(column) for column in _COLUMNS] for row in run["requests"])
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        text = text.replace('"requests": []', f'"requests": [\n{lines}\n]', 1)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(report(results), encoding="utf-8")


def report(results: Mapping[str, Any]) -> str:
    """The tables as Markdown."""
    about = results["about"]
    lines = ["# A server under load", ""]
    lines += [
        "Written by `make benchmark-load`; [benchmarks](../../../benchmarks/README.md#a-server-under-load) says how it "
        "is measured.",
        "",
        f"{about['hardware']}, {about['num_cores']} cores, which the client shares (it took "
        f"{_percent(results['client_share'])} of one); {about['versions']}. "
        f"`mtsk serve {' '.join(results['options'])}`.",
        "",
        "Capacity (closed loop, answers a second): "
        + ", ".join(f"{name} {each:.2f}" for name, each in results["capacity_per_s"].items())
        + f". Multiples are of that of `{results['finest']}`.",
        "",
        *_asked(results),
    ]
    for name, run in results["runs"].items():
        lines += ["", f"## {name}: model `{run['model']}`", "", *_table(run), "", _memory(run)]
        if run["recovery_s"] is not None:
            lines[-1] += f" {run['recovery_s']:.1f} s after the load fell, new requests were read as they ask again."
    pictures = [f"![{name}]({name}.png)" for name in results.get("plots", ())]
    return "\n".join([*lines, "", *pictures]).rstrip() + "\n"


def _asked(results: Mapping[str, Any]) -> list[str]:
    """What was asked for, of the runs that there are."""
    runs = results["runs"]
    lines = ["| asked for | limit | measured | |", "|---|---|---|---|"]

    def row(what: str, limit: str, measured: str, is_kept: bool) -> None:
        lines.append(f"| {what} | {limit} | {measured} | {'yes' if is_kept else 'no'} |")

    if "fixed-3x" in runs and "elastic-3x" in runs:
        fixed, elastic = (runs[name]["steps"][0]["goodput_per_s"] for name in ("fixed-3x", "elastic-3x"))
        what = f"3 x capacity: answers within {GOOD_S:g} s, elastic over fixed"
        measured = f"{elastic:.2f} / {fixed:.2f} a second" + (f" = {elastic / fixed:.2f}" if fixed else "")
        row(what, f"at least {MIN_RATIO}", measured, elastic >= MIN_RATIO * fixed)
    if "elastic-10x" in runs:
        run = runs["elastic-10x"]
        statuses = next(step["statuses"] for step in run["steps"] if step["multiple"] == HARD)
        counts = ", ".join(f"{status}: {number}" for status, number in statuses.items())
        row("10 x capacity: statuses", "200 and 429", counts, set(statuses) <= {"200", "429"})
        drift = run["resident_mib"]["after"] / run["resident_mib"]["before"] - 1
        row("10 x capacity: growth of memory", f"below {_percent(MAX_DRIFT)}", _percent(drift), drift < MAX_DRIFT)
    return lines if len(lines) > 2 else []


def _table(run: Mapping[str, Any]) -> list[str]:
    lines = [
        f"| x capacity | s | requests | 200 | 429 | other | within {GOOD_S:g} s, a second | latency p50 | p95 | WER "
        "| read coarser | scales |",
        "|" + "---|" * 12,
    ]
    for step in run["steps"]:
        statuses, latency_s = step["statuses"], step["latency_s"]
        other = step["requests"] - statuses.get("200", 0) - statuses.get("429", 0)
        cells = [f"{step['multiple']:g}", f"{step['duration_s']:g}", step["requests"]]
        cells += [statuses.get("200", 0), statuses.get("429", 0), other, f"{step['goodput_per_s']:.2f}"]
        cells += [f"{latency_s[q]:.2f}" if latency_s else "-" for q in ("50", "95")]
        cells += ["-" if step["wer"] is None else _percent(step["wer"]), _percent(step["degraded"])]
        cells += [", ".join(f"{scale} {number}" for scale, number in step["scales"].items()) or "-"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _memory(run: Mapping[str, Any]) -> str:
    memory = run["resident_mib"]
    return (
        f"Resident memory {memory['before']:.0f} MiB before, {memory['after']:.0f} MiB after; at most "
        f"{memory['peak']:.0f} MiB. The server took {run['server_cores']:.2f} cores."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
