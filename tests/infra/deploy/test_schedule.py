"""A cron expression is refused with the field that is wrong, and means the same times to every scheduler."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from infra.deploy.schedule import parse
from infra.errors import UserError

EXPRESSIONS = {
    "0 2 * * *": ["*-*-* 02:00:00"],
    "*/20 */6 * * *": ["*-*-* 00,06,12,18:00,20,40:00"],
    "5/25 22-23 1-3,15 jan,JUL *": ["*-01,07-01,02,03,15 22,23:05,30,55:00"],
    "0 3 * * mon-fri": ["Mon,Tue,Wed,Thu,Fri *-*-* 03:00:00"],
    "0 3 * * 5-7": ["Sun,Fri,Sat *-*-* 03:00:00"],
    "0 3 * * 0,7": ["Sun *-*-* 03:00:00"],
    "30 4 1,15 * 5": ["*-*-01,15 04:30:00", "Fri *-*-* 04:30:00"],
    "30 4 1-31 2 5": ["*-02-* 04:30:00", "Fri *-02-* 04:30:00"],
    "30 4 */2 * 1": ["Mon *-*-" + ",".join(f"{day:02}" for day in range(1, 32, 2)) + " 04:30:00"],
    "0 0 29 2 *": ["*-02-29 00:00:00"],
}
"""What systemd is told; two lines where either of the day fields is enough."""
START = datetime(2026, 11, 24, 12, 34)


@pytest.mark.parametrize(("text", "lines"), EXPRESSIONS.items())
def test_a_cron_expression_becomes_calendar_lines(text: str, lines: list[str]) -> None:
    assert parse(text).on_calendar() == lines


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
@pytest.mark.parametrize("text", EXPRESSIONS)
def test_systemd_finds_the_times_that_cron_finds(text: str) -> None:
    found = set()
    for line in parse(text).on_calendar():
        command = ["systemd-analyze", "calendar", "--iterations=12", f"--base-time={START:%Y-%m-%d %H:%M:%S}", line]
        done = subprocess.run(command, env={**os.environ, "TZ": "UTC", "LC_ALL": "C"}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found |= set(re.findall(r"(?:Next elapse|Iter\. #\d+): \w{3} (.{19}) UTC", done.stdout))
    assert sorted(found)[:12] == [f"{time:%Y-%m-%d %H:%M:%S}" for time in islice(CronSim(text, START), 12)]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_what_a_crontab_gets_means_the_same_in_plain_numbers(text: str) -> None:
    written = str(parse(text))
    assert re.fullmatch(r"((\d+,)*\d+ |\*(/\d+)? ){4}((\d+,)*\d+|\*(/\d+)?)", written), written
    assert list(islice(CronSim(written, START), 40)) == list(islice(CronSim(text, START), 40))


def test_days_that_kubernetes_reads_otherwise_are_refused_for_it_alone() -> None:
    assert parse("0 3 * * sun").kubernetes() == "0 3 * * 0"  # it takes no 7
    assert parse("30 4 */2 * *").kubernetes() == "30 4 */2 * *"
    assert parse("30 4 1,15 * 5").kubernetes() == "30 4 1,15 * 5"
    with pytest.raises(UserError, match=r"day-of-month '\*/2' and day-of-week '1' mean days that are both to cron"):
        parse("30 4 */2 * 1").kubernetes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 2 * *", r"'0 2 \* \*' has 4 fields, not 5 \(minute, hour, day-of-month, month, day-of-week\)"),
        ("0 0 2 * * *", "has 6 fields"),
        ("@daily", "has 1 fields"),
        ("", "has 0 fields"),
        ("60 2 * * *", "minute '60' is not allowed: 0-59"),
        ("0 24 * * *", "hour '24' is not allowed: 0-23"),
        ("0 2 0 * *", "day-of-month '0' is not allowed: 1-31"),
        ("0 2 32 1 *", "day-of-month '32' is not allowed: 1-31"),
        ("0 2 * 13 *", "month '13' is not allowed: 1-12 or JAN-DEC"),
        ("0 2 * * 8", "day-of-week '8' is not allowed: 0-7"),
        ("0 2 * * fry", "day-of-week 'FRY' is not allowed"),
        ("0-5-9 2 * * *", "minute '0-5-9' is not allowed"),
        ("9-5 2 * * *", "minute '9-5' is not allowed"),
        ("*/0 2 * * *", r"minute '\*/0' is not allowed"),
        ("1,,2 2 * * *", "minute '1,,2' is not allowed"),
        ("-1 2 * * *", "minute '-1' is not allowed"),
        ("0 2 L * *", "day-of-month 'L' is not allowed"),
        ("0 2 1,LW * *", "day-of-month '1,LW' is not allowed"),
        ("0 2 * * 5L", "day-of-week '5L' is not allowed"),
        ("0 2 * * MON#2", "day-of-week 'MON#2' is not allowed"),
        ("0 2 31 2,4 *", "never comes: month '2,4' has no day-of-month '31'"),
    ],
)
def test_a_mistake_is_told_by_its_field(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(text)


def test_next_times_are_those_of_the_clock_on_the_wall() -> None:
    zone = ZoneInfo("Pacific/Kiritimati")  # UTC+14, no summer time
    first, second = parse("17 5 * * *").next_times(2, zone)
    assert (first.hour, first.minute, (second - first).days) == (5, 17, 1)
    ahead = first.replace(tzinfo=zone) - datetime.now(UTC)
    assert 0 < ahead.total_seconds() <= 86400
