"""`ringhub bench --calibrate` and `ringhub plan`: a host is measured, and what a load needs is worked out from that."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from hub import binary, clean_environment

LOAD = ["--connections", "10000", "--rooms", "10", "--rate", "50"]
MACHINE = ["--cores", "8", "--memory", "32", "--descriptors", "1048576"]


def ringhub(*arguments: str, timeout_s: float = 30, **environment: str) -> subprocess.CompletedProcess:
    """Runs a command of the program to its end. No state of the user who runs the tests is seen or changed."""
    settings = clean_environment() | {"XDG_STATE_HOME": "/nonexistent"} | environment
    return subprocess.run([binary(), *arguments], env=settings, capture_output=True, text=True, timeout=timeout_s, check=False)


def plan(*arguments: str, **environment: str) -> dict:
    done = ringhub("plan", *LOAD, *MACHINE, "--json", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    """A calibration of this host, as short as one can be."""
    state = tmp_path_factory.mktemp("state")
    short = ["--conns", "100", "--secs", "0.5", "--warmup", "0.2"]
    done = ringhub("bench", "--calibrate", *short, timeout_s=120, XDG_STATE_HOME=str(state))
    assert done.returncode == 0, done.stderr
    file = state / "ringhub" / "calibration.json"
    assert str(file) in done.stdout
    return file


def test_a_calibration_measures_this_host_and_is_kept_where_state_is_kept(calibrated):
    figures = json.loads(calibrated.read_text())
    host = figures["host"]
    assert host["kernel"] == os.uname().release
    assert host["cores"] == len(os.sched_getaffinity(0))
    assert host["ringhub"] == ringhub("--version").stdout.split()[1]
    assert [delivery["events"] for delivery in figures["deliveries"]] == [1, 16, 64]
    # Whatever the machine and the build: a send that carries sixty-four events costs less for each than one with one.
    costs = [delivery["cpu_us"] for delivery in figures["deliveries"]]
    assert 0 < costs[2] < costs[0], costs
    for name in ("publish_us", "connect_us", "heartbeat_us", "base_bytes", "connection_bytes", "log_bytes"):
        assert figures[name] > 0, name
    assert not list(calibrated.parent.glob("*.unfinished"))


def test_a_plan_is_made_from_the_calibration_of_the_host_where_there_is_one(calibrated):
    planned = plan(XDG_STATE_HOME=str(calibrated.parents[1]))
    assert planned["calibration"] == str(calibrated)
    assert not any("another machine" in remark for remark in planned["remarks"])
    figures = json.loads(calibrated.read_text())
    cpu = planned["need"]["resources"][0]
    # 50 events per second to a thousand members each.
    assert cpu["name"] == "CPU" and cpu["terms"][0]["value"] == pytest.approx(50_000 * figures["deliveries"][0]["cpu_us"] / 1e6)
    assert cpu["needed"] == pytest.approx(2 * cpu["used"])
    named = plan("--calibration", str(calibrated))
    assert named["need"] == planned["need"]


def test_without_a_calibration_the_figures_are_those_of_another_machine_and_that_is_said():
    planned = plan()
    assert planned["calibration"] is None
    assert "ringhub bench --calibrate" in planned["remarks"][0]
    text = ringhub("plan", *LOAD, *MACHINE).stdout
    assert text.startswith("1 node with 1 shard; ")
    for word in ("CPU:", "memory:", "outgoing bandwidth:", "descriptors:", "50 000/s × ", "shards.count = 1", "LimitNOFILE="):
        assert word in text, word
    assert "NOTE  the figures are of another machine" in text


def test_what_no_machines_bear_ends_with_a_failure_that_names_the_resource():
    done = ringhub("plan", "--connections", "100000", "--rooms", "10", "--rate", "1000000", *MACHINE)
    assert done.returncode == 1
    assert done.stdout.startswith("no number of such nodes bears it: "), done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--connections", "10", "--rooms", "5"], "--rate"),
        (["plan", *LOAD, "--members", "20000"], "--members 20000"),
        (["plan", *LOAD, "--headroom", "100"], "--headroom"),
        (["plan", *LOAD, "--calibration", "/nonexistent.json"], "/nonexistent.json"),
        (["bench", "--calibrate", "--window", "5"], "--calibrate"),
        (["bench", "--out", "/tmp/x.json"], "--calibrate"),
    ],
)
def test_wrong_use_is_refused_with_the_option(arguments, said):
    done = ringhub(*arguments)
    assert done.returncode == 2 and said in done.stderr, done.stderr


def test_a_calibration_that_is_damaged_or_of_another_format_is_refused(tmp_path):
    for text, said in (("{", "is no calibration"), ('{"format": 99}', "another format (99")):
        file = tmp_path / "calibration.json"
        file.write_text(text)
        done = ringhub("plan", *LOAD, "--calibration", str(file))
        assert done.returncode == 2 and said in done.stderr, done.stderr


def test_a_calibration_that_can_not_be_saved_says_so():
    short = ["--conns", "20", "--secs", "0.3", "--warmup", "0.1", "--quiet"]
    done = ringhub("bench", "--calibrate", *short, "--out", "/proc/calibration.json", timeout_s=120)
    assert done.returncode == 1 and "can't be saved: /proc/calibration.json" in done.stderr, done.stderr
