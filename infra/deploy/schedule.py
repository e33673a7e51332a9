"""What is to run, and when: a cron expression, checked and written as each scheduler reads it.

Schedulers differ in what they take (names in lists, `5/10`, Sunday as 7), so all but a leading star is written out as
numbers. They differ in days too: where day-of-month and day-of-week are both set, cron runs on either; where one begins
with a star (`*/2`), Debian's cron runs on days that are both and Kubernetes on either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, tzinfo
from itertools import islice
from pathlib import Path

from infra.errors import UserError

ALLOWED = {
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 (0 and 7 are Sunday) or SUN-SAT",
}
WEEKDAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
DAYS, WEEKDAY = 2, 4
"""Positions of the two fields that name days."""


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file that deploys something."""

    name: str
    """Its path, or its name where it has no place yet."""
    content: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CronExpression:
    """Five fields that are known to be right. `parse` makes one."""

    fields: tuple[str, ...]
    numbers: tuple[frozenset[int], ...]
    """What each field allows; Sunday is 0."""
    is_either_day: bool
    """Whether one of the two day fields is enough; else both must fit."""

    def __str__(self) -> str:
        """For a crontab."""
        return " ".join(
            field if field.startswith("*") else ",".join(map(str, sorted(numbers)))
            for field, numbers in zip(self.fields, self.numbers, strict=True)
        )

    def kubernetes(self) -> str:
        """For a CronJob.

        Raises:
            UserError: days that Kubernetes cannot tell.
        """
        days, weekday = self.fields[DAYS], self.fields[WEEKDAY]
        if not self.is_either_day and "*" not in (days, weekday):
            raise UserError(
                f"--at: day-of-month {days!r} and day-of-week {weekday!r} mean days that are both to cron, and either "
                "to Kubernetes; set one of them to *"
            )
        return str(self)

    def on_calendar(self) -> list[str]:
        """For the OnCalendar= lines of a systemd timer, whose day fields must both fit: two lines for either."""
        minutes, hours, days, months, weekdays = self.numbers
        pairs = [(days, None), (None, weekdays)] if self.is_either_day else [(days, weekdays)]
        return [
            (_weekdays(weekdays_) + f"*-{_listed(months, 12)}-{_listed(days_, 31)} ")
            + f"{_listed(hours, 24)}:{_listed(minutes, 60)}:00"
            for days_, weekdays_ in pairs
        ]

    def next_times(self, count: int, zone: tzinfo | None = None) -> list[datetime]:
        """The next times by the clock on the wall, without a time zone.

        Args:
            count: how many.
            zone: of that clock; without it, the machine's.
        """
        from cronsim import CronSim

        now = datetime.now(zone).replace(tzinfo=None)
        return list(islice(CronSim(" ".join(self.fields), now), count))


def _listed(numbers: Collection[int] | None, size: int) -> str:
    """`02,14`, or a star for all."""
    return "*" if numbers is None or len(numbers) == size else ",".join(f"{number:02}" for number in sorted(numbers))


def _weekdays(numbers: Collection[int] | None) -> str:
    if numbers is None or len(numbers) == len(WEEKDAYS):
        return ""
    return ",".join(WEEKDAYS[number] for number in sorted(numbers)) + " "


def parse(text: str) -> CronExpression:
    """The cron expression that a user wrote: five fields, with lists, ranges, steps and names.

    Raises:
        UserError: names the field and what it allows.
    """
    from cronsim import CronSim, CronSimError

    fields = text.upper().split()
    if len(fields) != len(ALLOWED):
        raise UserError(
            f"--at: {text!r} has {len(fields)} fields, not 5 ({', '.join(ALLOWED)}); every night at two is '0 2 * * *'"
        )
    try:
        found = CronSim(text, datetime.now())
    except CronSimError as error:
        name = str(error).removeprefix("Bad ")
        raise UserError(_refusal(name, fields[list(ALLOWED).index(name)], fields)) from error
    weekdays = frozenset(number % len(WEEKDAYS) for number in found.weekdays if isinstance(number, int))
    # Beside numbers there may be L, W and #, which are other crons' own.
    if min(found.days) < 0:
        raise UserError(_refusal("day-of-month", fields[DAYS], fields))
    if any(not isinstance(number, int) for number in found.weekdays):
        raise UserError(_refusal("day-of-week", fields[WEEKDAY], fields))
    return CronExpression(
        fields=tuple(fields),
        numbers=(*map(frozenset, (found.minutes, found.hours, found.days, found.months)), weekdays),
        is_either_day=not found.day_and,
    )


def _refusal(name: str, field: str, fields: list[str]) -> str:
    if name == "day-of-month" and fields[3] != "*":
        try:
            parse(" ".join((*fields[:3], "*", fields[4])))
        except UserError:
            pass
        else:
            return f"--at: never comes: month {fields[3]!r} has no day-of-month {field!r}"
    return f"--at: {name} {field!r} is not allowed: {ALLOWED[name]}, lists a,b, ranges a-b, steps */n, or *"


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A pipeline that runs again and again."""

    name: str
    """Of the timer, the CronJob, or the line of the crontab: a second schedule of the same name takes its place."""
    at: CronExpression
    pipeline: str
    overrides: tuple[str, ...]
    """`key=value`."""
    program: tuple[str, ...]
    """What starts `fromzero` on this machine, by absolute paths."""
    folder: Path
    """Relative paths of the config count from here."""
    root: Path
    """storage.root, or the folder of this machine that stands for one on an object store."""

    @property
    def command(self) -> Iterator[str]:
        """The words of the command that runs it on this machine."""
        yield from (*self.program, "run", self.pipeline, *self.overrides)
