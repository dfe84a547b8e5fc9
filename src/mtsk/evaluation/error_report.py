"""The kinds of errors of an evaluation: `errors.json` and `errors.md`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtsk.evaluation.errors import FLAGS, KINDS, Lexicon, UtteranceErrors, sort_errors
from mtsk.evaluation.grid import NO_INPUT, Row
from mtsk.evaluation.wer import normalize
from mtsk.files import write_whole

_OPERATIONS = ("substitution", "deletion", "insertion")
_NUM_WORST = 5
_NUM_CONFUSIONS = 20


def write_errors(rows: Sequence[Row], out_dir: Path, lexicon: Lexicon) -> None:
    """Writes `errors.json`, an object of `rules` and `rows`, and `errors.md`, the same to read.

    A row has, under `scale` and `snr_db` as in `wer.json`: `errors`; `operations`, `kinds` and `flags`, each name ->
    number; `confusions`, the commonest (said, written, number) with null for nothing; and `worst`, the utterances with
    the most errors. What was written without input is left out.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    records = [_record(row, lexicon) for row in rows if row.name != NO_INPUT]
    rules = {"kinds": KINDS, "flags": FLAGS, "rare_is_told": lexicon.counts is not None}
    content = {"rules": rules, "rows": records}
    write_whole(out_dir / "errors.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(out_dir / "errors.md", _markdown(records, rare_is_told=lexicon.counts is not None))


def _record(row: Row, lexicon: Lexicon) -> dict[str, Any]:
    utterances = [sort_errors(hypothesis, lexicon) for hypothesis in row.hypotheses]
    errors = [error for each in utterances for error in each.errors]
    flags = Counter(flag for each in utterances for flag in each.flags)
    operations = Counter[str](error.operation for error in errors)
    kinds = Counter(error.kind for error in errors)
    confusions = Counter((error.reference, error.hypothesis) for error in errors)
    worst = sorted(utterances, key=lambda each: -len(each.errors))[:_NUM_WORST]
    return {
        "scale": row.name,
        "snr_db": row.snr_db,
        "words": row.rate.words,
        "errors": len(errors),
        "operations": {name: operations[name] for name in _OPERATIONS},
        "kinds": {name: kinds[name] for name in KINDS},
        "flags": {name: flags[name] for name in FLAGS},
        "confusions": [[*pair, num] for pair, num in confusions.most_common(_NUM_CONFUSIONS)],
        "worst": [_utterance(each) for each in worst if each.errors],
    }


def _utterance(found: UtteranceErrors) -> dict[str, Any]:
    return {
        "utterance": found.hypothesis.utterance,
        "words": len(normalize(found.hypothesis.reference)),
        "errors": len(found.errors),
        "flags": list(found.flags),
        "reference": found.hypothesis.reference,
        "hypothesis": found.hypothesis.text,
    }


def _markdown(records: Sequence[Mapping[str, Any]], *, rare_is_told: bool) -> str:
    kinds = [kind for kind in KINDS if rare_is_told or kind != "rare"]
    names = [_name(record) for record in records]
    lines = [
        "# Errors",
        "",
        "Wrong words by kind, each in the first that fits; in brackets the share of all errors.",
        "",
    ]
    lines += _table(
        ["", "words", "errors", *(f"{name}s" for name in _OPERATIONS), *kinds],
        [
            [
                *(name, str(record["words"]), str(record["errors"])),
                *(str(record["operations"][operation]) for operation in _OPERATIONS),
                *(_share(record["kinds"][kind], record["errors"]) for kind in kinds),
            ]
            for name, record in zip(names, records, strict=True)
        ],
    )
    lines += [
        "",
        *(f"- **{kind}**: {KINDS[kind]}" for kind in kinds),
        "",
        "Utterances whose text is odd as a whole:",
        "",
    ]
    flagged = [
        [name, *(str(record["flags"][flag]) for flag in FLAGS)] for name, record in zip(names, records, strict=True)
    ]
    lines += [*_table(["", *FLAGS], flagged), "", *(f"- **{flag}**: {rule}" for flag, rule in FLAGS.items())]
    for name, record in zip(names, records, strict=True):
        lines += ["", f"## {name}, the worst utterances"]
        for each in record["worst"]:
            odd = "".join(f", {flag}" for flag in each["flags"])
            lines += ["", f"`{each['utterance']}`: {each['errors']} errors in {each['words']} words{odd}  "]
            lines += [f"said: {each['reference'] or '-'}  ", f"written: {each['hypothesis'] or '-'}"]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *cells]
    return [f"| {' | '.join(row)} |" for row in rows]


def _name(record: Mapping[str, Any]) -> str:
    snr_db = record["snr_db"]
    return record["scale"] if snr_db is None else f"{record['scale']} at {snr_db:g} dB"


def _share(num: int, num_all: int) -> str:
    return f"{num} ({100 * num / num_all:.0f} %)" if num else "0"
