"""``--best``: of each method the setting that a measure without test images picks, which the table then says."""

from __future__ import annotations

import dataclasses
import json

from report.rows import FLOOR, Row


def larger_is_better(measure: str) -> bool:
    return measure.startswith("ToW")


def pick(table: list[Row], measure: str | None) -> list[Row]:
    """The rows with one setting of each method (or plan) in each of the tables: the best mean, over the most seeds.

    A setting with a collapsed model is picked only where all have one; one without the measure (no validation split) never
    while another has it. The row says of how many it is the best, so that a tuned number is not taken for an untuned one.
    """
    if measure is None:
        return table
    sign = 1 if larger_is_better(measure) else -1
    rivals: dict[tuple[str, str], list[Row]] = {}
    for row in table:
        if row.method != FLOOR and not row.is_reference:
            rivals.setdefault((row.setting, family(row)), []).append(row)

    def merit(row: Row) -> tuple[bool, bool, int, float]:
        known = measure in row.numbers
        return not row.collapsed, known, len(row.units), sign * row.numbers[measure].mean if known else 0.0

    found = []
    for row in table:
        there = rivals.get((row.setting, family(row)), []) if row.method != FLOOR and not row.is_reference else []
        if len(there) < 2:
            found.append(row)
        elif row is max(there, key=merit):
            found.append(dataclasses.replace(row, picked=f"best of {len(there)} by {measure}"))
    return found


def family(row: Row) -> str:
    """The method or plan, whatever its settings; a mask of its own makes it no other method, another name does."""
    return f"{json.loads(row.variant)[0]} {row.name}"


def said(part: list[Row], measure: str | None) -> list[str]:
    """What is to be known of picked settings, under their table."""
    picked = [row for row in part if row.picked]
    if not picked:
        return []
    seeds = sorted({str(unit) for row in picked for unit in row.units})
    return [f"Best settings were picked by {measure}, which no test image enters, over the seeds {' '.join(seeds)} that are "
            "shown: a picked number looks better than it would on fresh seeds, the more so the more settings were tried."]
