"""`fromzero schedule`: what it prints runs, what is wrong is refused, and installing twice leaves one."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.cli import main
from tests.pipelines.conftest import PROJECT, Cli, Done

Invoke = Callable[..., Done]
NIGHTLY = ("--at", "0 2 * * *")
ELSEWHERE = "corpus.sources[0].path: texts is relative, which counts from nowhere on a cluster"


@pytest.fixture
def schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Invoke:
    """`schedule("llm", "--at", ...)` in this process, which is five times as quick."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["fromzero", "schedule", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        return Done(int(caught.value.code or 0), *capfd.readouterr())

    return call


def test_the_crontab_line_runs_the_pipeline(cli: Cli, tmp_path: Path) -> None:
    """Under the bare environment of cron, up to its first complaint: there is no folder texts/."""
    done = cli("schedule", *NIGHTLY, "--print", "cron", "task.label_column=类 别")
    assert done.code == 0 and done.err.startswith("next: ") and done.err.endswith(" (local time)\n"), done.err
    command = done.out.rstrip("\n").removeprefix("0 2 * * * ")
    ran = subprocess.run(["sh", "-c", command], cwd="/", env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", "")
    log = (tmp_path / ".fromzero" / "fromzero-nightly.log").read_text()
    assert log.startswith(f"error: corpus.sources[0].path: texts matches no file (looked from {tmp_path})"), log


def test_the_root_of_the_environment_is_written_down(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At night that variable is not set. What the command line gives is left as it is."""
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "FROMZERO_HOME": "here", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "pipelines.cli", "schedule", *NIGHTLY, "--print", "cron"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"run nightly storage.root={tmp_path}/here >> {tmp_path}/here/fromzero-nightly.log" in done.stdout
    done = subprocess.run([*command, "storage.root=x"], env=environment, capture_output=True, text=True, check=True)
    assert f"run nightly storage.root=x >> {tmp_path}/x/fromzero-nightly.log" in done.stdout


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("systemd", ["fromzero-llm.service", "fromzero-llm.timer"]),
        ("cron", ["crontab"]),
        ("kubernetes", ["fromzero-llm.yaml"]),
    ],
)
def test_json_is_one_document_with_the_files(schedule: Invoke, kind: str, names: list[str]) -> None:
    done = schedule("llm", "seed=3", *NIGHTLY, "--print", kind, "--json")
    assert done.code == 0 and set(done.json) == {"name", "pipeline", "at", "next", "files", "errors"}
    assert [Path(file["name"]).name for file in done.json["files"]] == names
    assert all("llm" in file["content"] for file in done.json["files"]) and "seed=3" in done.json["files"][0]["content"]
    assert len(done.json["next"]) == 3 and all(time.endswith(" 02:00") for time in done.json["next"])


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ("seed=x", "--at", "0 25 * * *", "--print", "cron"),
            ["seed: 'x' is not allowed", "--at: hour '25' is not allowed: 0-23"],
        ),
        (("weekly", *NIGHTLY, "--print", "cron"), ["no pipeline 'weekly'"]),
        (("--print", "cron"), ["--at is missing"]),
        (NIGHTLY, ["say one of --print"]),
        ((*NIGHTLY, "--print", "cron", "--install", "cron"), ["say one of --print"]),
        ((*NIGHTLY, "--print", "systemd", "--timezone", "UTC"), ["--timezone: for --print kubernetes alone"]),
        ((*NIGHTLY, "--print", "kubernetes", "--timezone", "Mars/X"), ["--timezone: there is no 'Mars/X'", ELSEWHERE]),
        (
            (*NIGHTLY, "--print", "kubernetes", "--address", "http://u:p@ray"),
            ["--address: 'http://u:p@ray'", ELSEWHERE],
        ),
        ((*NIGHTLY, "--print", "cron", "--name", "a b"), ["--name: 'a b' is not allowed"]),
        (("--remove", "cron", *NIGHTLY), ["--remove takes a name alone"]),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_printed(
    schedule: Invoke, arguments: tuple[str, ...], messages: list[str]
) -> None:
    done = schedule(*arguments)
    lines = done.err.splitlines()
    assert done.code == 2 and not done.out and len(lines) == len(messages), done.err
    assert all(line.startswith(f"error: {message}") for line, message in zip(lines, messages, strict=True)), done.err


def in_private(mounts: list[str], script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `script` where each of `mounts` is an empty folder that nobody else sees."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("cannot make a mount namespace here")
    hide = [f"mount -t tmpfs tmpfs {shlex.quote(folder)}" for folder in mounts]
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", "\n".join(["set -e", *hide, script])],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )


COMMAND = f"{shlex.quote(sys.executable)} -m pipelines.cli schedule"


@pytest.mark.skipif(shutil.which("crontab") is None, reason="cron is not installed")
def test_a_crontab_has_one_line_of_a_name_and_keeps_all_others(tmp_path: Path) -> None:
    script = f"""
        printf '# mine\\nMAILTO=me\\n5 5 * * * : 100\\\\%%' > crontab; echo >> crontab; crontab crontab; crontab -l > 0
        {COMMAND} --at '0 2 * * *' --install cron "task.label_column=50% 类别"
        {COMMAND} --at '0 3 * * *' --install cron "task.label_column=50% 类别"
        {COMMAND} llm --at '0 4 * * *' --install cron
        crontab -l > 1
        {COMMAND} --remove cron; {COMMAND} llm --remove cron; {COMMAND} --remove cron
        crontab -l > 2
    """
    done = in_private(["/var/spool/cron/crontabs"], script, tmp_path)
    assert done.returncode == 0, done.stderr
    before, between, after = ((tmp_path / name).read_text() for name in "012")
    assert before == after and "100\\%" in before
    added = between.removeprefix(before).splitlines()
    assert [line[:9] for line in added] == ["0 3 * * *", "0 4 * * *"]
    assert added[0].endswith("# fromzero-schedule: fromzero-nightly") and "'task.label_column=50\\% 类别'" in added[0]
    assert "the crontab of this user has no line fromzero-nightly" in done.stderr


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="systemd is not installed")
@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs here, and would be asked for the units")
def test_units_are_installed_enabled_and_removed(tmp_path: Path) -> None:
    """Where systemd does not run, as in a container, a timer is enabled for the next boot."""
    script = f"""
        {COMMAND} --at '0 2 * * *' --install systemd
        {COMMAND} --at '30 3 * * *' --install systemd
        cd /etc/systemd/system; find . ! -type d | sort; grep OnCalendar fromzero-nightly.timer
        systemctl is-enabled fromzero-nightly.timer
        {COMMAND} --remove systemd
        find . ! -type d
    """
    done = in_private(["/etc/systemd/system"], script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "./fromzero-nightly.service",
        "./fromzero-nightly.timer",
        "./timers.target.wants/fromzero-nightly.timer",
        "OnCalendar=*-*-*",
        "03:30:00",
        "enabled",
    ]
