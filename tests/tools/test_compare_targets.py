"""tools/compare/targets.py: what there is to compare, and its command lines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from pktstun import cli
from tools.compare import targets
from tools.compare.targets import ChoiceError

if TYPE_CHECKING:
    from pathlib import Path

PLACE = {
    "address": "192.0.2.1",
    "address2": "192.0.2.2",
    "port": "3479",
    "iface": "v0",
    "cpus": "1,3",
    "cpu": "1",
    "threads": "2",
    "scratch": "/scratch",
    "nice": "-19",
}


def make_program(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "target", [*targets.MODES.values(), *targets.sweep(list(targets.SWEEPS), [])]
)
def test_the_server_takes_every_command(target: targets.Target) -> None:
    command = target.filled(PLACE)
    assert command[:3] == [sys.executable, "-m", "pktstun"]
    options = cli._parser().parse_args(command[3:])
    assert (options.command, options.listen[0], options.port) == ("serve", "192.0.2.1", 3479)
    assert options.cpus in {"1", "1,3"}
    assert options.nice == -19
    if target.setting:
        assert vars(options)[target.setting.replace("-", "_")] == target.value


def test_the_ladder_goes_from_the_slowest_up() -> None:
    chosen, left_out = targets.ladder([], 2)
    assert tuple(target.key for target in chosen) == targets.LADDER
    assert not left_out


def test_one_cpu_leaves_out_one_worker_per_cpu_and_says_so() -> None:
    chosen, left_out = targets.ladder([], 1)
    assert "single-all" not in {target.key for target in chosen}
    assert list(left_out) == [targets.MODES["single-all"].title]


def test_modes_are_chosen_by_name_and_keep_their_order() -> None:
    chosen, _ = targets.ladder(["takeover", "ring-takeover", "recvmmsg"], 1)
    assert [target.key for target in chosen] == ["recvmmsg", "ring-takeover", "takeover"]
    with pytest.raises(ChoiceError, match="no mode 'rings': choose from single, "):
        targets.ladder(["ring", "rings"], 1)


def test_a_sweep_has_a_target_for_each_value() -> None:
    swept = targets.sweep(["batch"], ["ring"])
    assert [target.value for target in swept] == list(targets.SWEEPS["batch"][1])
    assert {target.command[-2] for target in swept} == {"--batch"}
    assert all("ring" in target.command for target in swept)
    assert len({target.key for target in swept}) == len(swept)
    with pytest.raises(ChoiceError, match="cannot sweep 'blocks'"):
        targets.sweep(["blocks"], [])
    with pytest.raises(ChoiceError, match="one mode"):
        targets.sweep(["batch"], ["ring", "recvmmsg"])


def test_a_peers_command_is_split_and_filled_in() -> None:
    peer = targets.parse_peer("mine=/opt/stun --at {address}:{port} 'two words' {nothing")
    assert (peer.key, peer.own) == ("mine", False)
    assert peer.filled(PLACE) == [
        "/opt/stun", "--at", "192.0.2.1:3479", "two words", "{nothing",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "write NAME=COMMAND"),
        ("mine", "write NAME=COMMAND"),
        ("=stun", "write NAME=COMMAND"),
        ("mine=", "write NAME=COMMAND"),
        ("mine=stun 'open", "quotation"),
        ("mine=stun {host}", r"\{host\} means nothing; there are \{address\}, "),
    ],
)
def test_a_peer_that_makes_no_sense(text: str, problem: str) -> None:
    with pytest.raises(ChoiceError, match=problem):
        targets.parse_peer(text)


def test_absent_peers_are_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(targets, "_SBIN", str(tmp_path))
    assert targets.peers(["coturn", "stund"]) == (
        [],
        {"coturn": "turnserver is not installed", "stund": "stund is not installed"},
    )
    with pytest.raises(ChoiceError, match="no peer 'turn': choose from coturn, stund"):
        targets.peers(["turn"])


def test_coturn_is_given_the_options_it_knows_and_its_age_is_said(tmp_path: Path) -> None:
    old = make_program(
        tmp_path / "old",
        'case $1 in --version) echo 4.6.1;; *) echo " --no-cli  --no-tls <x> --no-rfc5780";; esac',
    )
    peer = targets.coturn(old)
    command = peer.filled(PLACE)
    assert peer.title == "coturn 4.6.1"
    assert {"--no-cli", "--no-tls", "--no-rfc5780"} <= set(command)
    assert "--no-dtls" not in command
    assert command[command.index("-m") + 1] == "2"
    assert "about six times as fast" in peer.note
    new = make_program(tmp_path / "new", "echo 4.17.1")
    assert "six times" not in targets.coturn(new).note
    silent = make_program(tmp_path / "silent", "exit 1")
    assert "version unknown" in targets.coturn(silent).note


def test_stund_says_its_version(tmp_path: Path) -> None:
    peer = targets.stund(make_program(tmp_path / "stund", "echo STUN server version 0.97; exit 1"))
    assert peer.title == "stund 0.97"
    assert "192.0.2.2" in peer.filled(PLACE)
    with pytest.raises(KeyError, match="address2"):
        peer.filled({name: value for name, value in PLACE.items() if name != "address2"})
