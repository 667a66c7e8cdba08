import os

import pytest

from emanet import cli
from emanet.cli.threads import choose_wait_policy, let_mac_fall_back


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    """No policy is set, and none stays set after the test."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")


@pytest.mark.parametrize(("running", "policy"), [(1, None), (2, "PASSIVE"), (7, "PASSIVE")])
def test_waiting_threads_sleep_on_a_busy_machine(tmp_path, running, policy):
    (tmp_path / "loadavg").write_text(f"4.20 3.18 1.12 {running}/80 11206\n")
    choose_wait_policy(tmp_path / "loadavg")
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_the_users_own_choice_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    (tmp_path / "loadavg").write_text("4.20 3.18 1.12 7/80 11206\n")
    choose_wait_policy(tmp_path / "loadavg")
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_systems_without_proc_are_left_alone(tmp_path):
    choose_wait_policy(tmp_path / "loadavg")
    assert "OMP_WAIT_POLICY" not in os.environ


def test_every_command_chooses_before_it_imports_torch(monkeypatch):
    chosen = []
    monkeypatch.setattr(cli, "choose_wait_policy", lambda: chosen.append(True))
    cli.main(["--version"])
    assert chosen


@pytest.mark.parametrize(
    ("platform", "own", "wanted"), [("darwin", None, "1"), ("darwin", "0", "0"), ("linux", None, None)]
)
def test_a_mac_falls_back_to_the_cpu(monkeypatch, platform, own, wanted):
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", own or "")
    if own is None:
        monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK")
    monkeypatch.setattr("sys.platform", platform)
    let_mac_fall_back()
    assert os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == wanted
