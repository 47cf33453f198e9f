"""`check-config` and `--print-config`: what an operator reads about a file, right or wrong."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pktstun
from pktstun import cli_serve
from pktstun.cli import main
from pktstun.cli_serve_options import serve_options
from pktstun.config import plan
from pktstun.errors import ConfigError
from pktstun.options import _actions, kinds, print_out
from pktstun.places import COMMAND_LINE

if TYPE_CHECKING:
    from pktstun.config import ServeConfig
    from tests.stream_client import Authority

pytestmark = [
    pytest.mark.native,
    # The examiner of certificates is a fork; a service has one thread, a test run may have several.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]

EXAMPLE = Path(pktstun.__file__).parent / "deploy" / "pktstun.toml"
OPTIONS = kinds(serve_options())


@pytest.fixture(name="file")
def file_fixture(tmp_path: Path) -> Path:
    return tmp_path / "pktstun.toml"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [each for each in os.environ if each.startswith("PKTSTUN_SERVE_")]:
        monkeypatch.delenv(variable)


# --- Wrong files: content, and what is said about it (FILE is its name) ---

WRONG = [
    # What is no TOML, or not flat.
    ("iface = eth0\n", "FILE:1: no TOML: Invalid value, column 9; a string stands in quotes"),
    (
        'iface = "lo"\nlisten = [\n  "192.0.2.1",\n',
        "FILE:2: no TOML: what begins here has no end: ']' or quotes",
    ),
    (
        'listen = [\n  "192.0.2.1",\n\nport = 3479\n',
        "FILE:4: no TOML: Invalid value, column 1 of what begins in line 1",
    ),
    ("# a\nport = 1\n\nport = 2\n", "FILE:4: port is in line 2 already"),
    (
        "port = 1\n\n[tuning]\nbatch = 64\n",
        "FILE:3: tuning: there are no tables: write NAME = VALUE, for each",
    ),
    (b'# caf\xe9\niface = "lo"\n', "FILE:1: this is not UTF-8"),
    # What there is not, and what is of another kind.
    (
        "port = 3478\nratelimit = 100\n",
        "FILE:2: there is no option 'ratelimit': did you mean rate-limit?",
    ),
    ('port = "3478"\n', "FILE:1: port takes an integer, and not a string: write port = 3478"),
    (
        'iface = "lo"\nlisten = "192.0.2.1"\n',
        'FILE:2: listen takes an array of strings, and not a string: write listen = ["192.0.2.1"]',
    ),
    ("cpus = 3\n", 'FILE:1: cpus takes a string, and not an integer: write cpus = "3"'),
    ("tcp = 1\n", "FILE:1: tcp takes true or false, and not an integer"),
    (
        'tls = "true"\n',
        "FILE:1: tls takes true or false, and not a string: write tls = true",
    ),
    # What is out of its range.
    ("port = 70000\n", "FILE:1: --port 70000 is not in 1..65535"),
    ("tls-port = 0\n", "FILE:1: --tls-port 0 is not in 1..65535"),
    ("nice = 30\n", "FILE:1: --nice: 30 is not in -20 to 19"),
    ('cpus = "3-1"\n', "FILE:1: --cpus: '3-1' is no list of CPUs; write for example 0-3,8"),
    ("batch = 0\n", "FILE:1: --batch: 0 is not in 1..1024"),
    ("\nblocks = 4\n", "FILE:2: --blocks: 4 is not in 8..16777216"),
    ("retire-timeout = 1000000\n", "FILE:1: --retire-timeout: 1000000 is not in 1..10000 ms"),
    ("busy-poll = 2000000\n", "FILE:1: --busy-poll: 2.0 is not in 0..1.0 seconds"),
    ("rate-limit = 0\n", "FILE:1: --rate-limit 0 is not in 1..100000"),
    (
        "rate-limit = 10\nrate-limit-share = 101\n",
        "FILE:2: --rate-limit-share 101 is not in 0..100 percent",
    ),
    (
        "tcp = true\nstream-idle-timeout = nan\n",
        "FILE:2: --stream-idle-timeout nan is not in 0..86400 seconds",
    ),
    (
        'port = 1\nlisten = ["192.0.2.1", "192.0.2.300"]\n',
        "FILE:2: --listen 192.0.2.300: ...",
    ),
    (
        'rate-limit = 1\nrate-limit-exempt = ["10.0.0.1/8"]\n',
        (
            "FILE:2: --rate-limit-exempt 10.0.0.1/8: 10.0.0.1/8 has host bits set; "
            "write for example 192.0.2.0/24"
        ),
    ),
    # Two that contradict each other.
    ('mode = "ring"\n', "FILE:1: ring mode reads the packets of one interface: ..."),
    (
        'iface = "lo"\nmode = "recvmmsg"\ntakeover = true\n',
        (
            "FILE:3: --takeover spares the kernel what a ring answers, and recvmmsg mode has no "
            "ring: leave it out, or use --mode ring or direct (--mode: FILE:2)"
        ),
    ),
    (
        'respect-firewall = true\niface = "lo"\nmode = "ring"\n',
        (
            "FILE:1: --respect-firewall: a packet ring, which ring mode reads, sees requests "
            "before the rules of the host's firewall do: use --mode recvmmsg, or leave it out "
            "(--mode: FILE:3)"
        ),
    ),
    (
        "\nrate-limit-share = 50\n",
        "FILE:2: --rate-limit-share is of use with --rate-limit only",
    ),
    (
        "rate-limit-network = 5\nrate-limit = 10\n",
        (
            "FILE:1: --rate-limit-network 5 is less than the --rate-limit of one of its addresses, "
            "10 (--rate-limit: FILE:2)"
        ),
    ),
    ('tcp = true\ntls-key = "x"\n', "FILE:2: --tls-key is of use with --tls only"),
    (
        "tls = true\n",
        (
            "FILE:1: --tls needs a certificate: name its file with --tls-certificate, and that of "
            "its key with --tls-key"
        ),
    ),
    (
        'tls-port = 3478\ntcp = true\ntls = true\ntls-certificate = "x"\nlisten = ["::1"]\n',
        "FILE:1: --tls-port 3478 is a port of --tcp on ::1: choose another (--tcp: FILE:2)",
    ),
    (
        "stream-requests = 5\n",
        "FILE:1: --stream-requests is of use with --tcp or --tls only",
    ),
    (
        'listen = ["192.0.2.1"]\nnat-discovery = true\n',
        (
            "FILE:2: --nat-discovery takes two IPv4 addresses with the same port, neither of them "
            "link-local, and not 192.0.2.1:3478: correct --listen (--listen: FILE:1)"
        ),
    ),
    (
        "alternate-port = 3479\n",
        "FILE:1: --alternate-port is of use with --nat-discovery only",
    ),
    (
        'listen = ["0.0.0.0", "192.0.2.1"]\n',
        (
            "FILE:1: --listen 192.0.2.1:3478 is served already by the wildcard address: leave one "
            "of them out"
        ),
    ),
    (
        'auth = "long-term"\nusers = "x"\n',
        "FILE:1: --auth long-term: name the realm with --realm, as --realm example.org",
    ),
    (
        'auth = "long-term"\nusers = "x"\nrealm = "x"\nclassic = true\n',
        (
            "FILE:1: --auth: clients of RFC 3489 know no such credentials: leave out --auth or "
            "--classic (--classic: FILE:4)"
        ),
    ),
    (
        'alternate-domain = "a.example"\nalternate-server = ["192.0.2.1"]\n',
        (
            "FILE:1: --alternate-domain is of use with --alternate-server and --tls only "
            "(--alternate-server: FILE:2)"
        ),
    ),
    (
        'metrics = "0.0.0.0:9478"\n',
        "FILE:1: --metrics 0.0.0.0:9478: metrics tell whoever asks ...",
    ),
    ('realm = "x"\n', "FILE:1: --realm is of use with --auth long-term only"),
    (
        'software = "' + "x" * 128 + '"\n',
        "FILE:1: --software: ...",
    ),
]


def check(*words: str) -> int:
    return main(["check-config", *words])


@pytest.mark.parametrize(
    ("content", "complaint"), WRONG, ids=[complaint.split(": ")[1] for _, complaint in WRONG]
)
def test_a_wrong_file_is_one_clear_message(
    file: Path, capsys: pytest.CaptureFixture[str], content: str | bytes, complaint: str
) -> None:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert check(str(file), "--any-host") == ConfigError.exit_status
    printed = capsys.readouterr()
    said = printed.err.replace(str(file), "FILE")
    assert printed.out == ""
    if complaint.endswith("..."):
        assert said.startswith(f"pktstun: {complaint.removesuffix('...')}")
        assert len(said.splitlines()) == 1
    else:
        assert said == f"pktstun: {complaint}\n"
    # The service says the same, and is not started again for it.
    assert main(["serve", "--config", str(file), "--print-config"]) in {0, ConfigError.exit_status}


def test_there_are_twenty_and_more() -> None:
    assert len({complaint for _, complaint in WRONG}) == len(WRONG) >= 20


# --- On this host ---


def said_of(capsys: pytest.CaptureFixture[str], *words: str, status: int = 78) -> str:
    assert check(*words) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.removeprefix("pktstun: ").rstrip("\n")


def test_what_this_host_has_not(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, complaint in (
        ('\niface = "nosuch0"\n', f"{file}:2: --iface: there is no network interface 'nosuch0': "),
        (
            'port = 3479\nlisten = ["127.0.0.1", "203.0.113.9"]\n',
            f"{file}:2: 203.0.113.9 is no address of this host ('ip address' shows those)",
        ),
        ('cpus = "4095"\n', f"{file}:1: CPU 4095 cannot be used by this process: choose --cpus"),
        (
            'tls-certificate = "/nowhere/x"\ntls = true\n',
            f"{file}:1: --tls-certificate: cannot read /nowhere/x: No such file or directory",
        ),
        (
            'auth = "short-term"\nusers = "/nowhere/x"\n',
            f"{file}:2: --users: cannot read the users file /nowhere/x: No such file",
        ),
        ('user = "nobody-at-all"\n', f"{file}:1: there is no user 'nobody-at-all': make one ("),
    ):
        file.write_text(content)
        # An interface or an address may be late.
        status = 75 if "nosuch0" in content or "203.0.113.9" in content else 78
        assert said_of(capsys, str(file), status=status).startswith(complaint)
        assert check(str(file), "--any-host") == 0
        assert (
            capsys.readouterr().out
            == "the configuration can be served by a host that has what it names\n"
        )


def test_a_wrong_users_file_is_named_with_its_line(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = tmp_path / "users"
    users.touch(mode=0o600)
    users.write_text("# nobody yet\nada\n")
    file.write_text(f'auth = "short-term"\nusers = "{users}"\n')
    assert said_of(capsys, str(file)).startswith(f"{users}:2: write NAME:PASSWORD")
    users.chmod(0o644)
    assert said_of(capsys, str(file)).startswith(f"{file}:2: --users: others may read or write")


def test_the_other_sources_are_named(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('mode = "recvmmsg"\n')
    for words, variables, complaint in (
        (["--port", "0"], {}, "--port 0 is not in 1..65535"),
        ([], {"PORT": "0"}, "environment PKTSTUN_SERVE_PORT: --port 0 is not in 1..65535"),
        (
            ["--takeover"],
            {},
            (
                "--takeover spares the kernel what a ring answers, and recvmmsg mode has no ring: "
                f"leave it out, or use --mode ring or direct (--mode: {file}:1)"
            ),
        ),
        (
            ["--rate-limit=10"],
            {"RATE_LIMIT_NETWORK": "5"},
            (
                "environment PKTSTUN_SERVE_RATE_LIMIT_NETWORK: --rate-limit-network 5 is less than "
                "the --rate-limit of one of its addresses, 10 (--rate-limit: command line)"
            ),
        ),
    ):
        with monkeypatch.context() as patch:
            for name, text in variables.items():
                patch.setenv(f"PKTSTUN_SERVE_{name}", text)
            assert said_of(capsys, str(file), *words) == complaint


def test_the_command_line_has_the_last_word(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text('port = 70000\nmode = "recvmmsg"\nlisten = ["192.0.2.1:0"]\n')
    assert check(str(file), "--port", "3479", "--listen", "127.0.0.1") == 0
    assert "  UDP      127.0.0.1:3479\n" in capsys.readouterr().out
    assert "70000" in said_of(capsys, str(file), "--listen", "127.0.0.1")


def test_which_file_is_read(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("port = 0")
    for words in ([str(file)], ["--config", str(file)]):
        assert said_of(capsys, *words) == f"{file}:1: --port 0 is not in 1..65535"
    monkeypatch.setenv("PKTSTUN_SERVE_CONFIG", str(file))
    assert said_of(capsys) == f"{file}:1: --port 0 is not in 1..65535"
    message = said_of(capsys, str(file), "--config", str(file), status=2)
    assert message == "FILE and --config mean the same: name one file"
    missing = file.with_name("none")
    monkeypatch.setenv("PKTSTUN_SERVE_CONFIG", str(missing))
    assert said_of(capsys) == (
        f"environment PKTSTUN_SERVE_CONFIG: --config: cannot read {missing}: "
        "No such file or directory"
    )


def test_a_good_file_says_what_would_be_served(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu = min(os.sched_getaffinity(0))
    file.write_text(
        f'iface = "lo"\nlisten = ["127.0.0.1", "::1"]\ntcp = true\ncpus = "{cpu}"\n'
        'metrics = "127.0.0.1:9478"\n'
    )
    assert check(str(file)) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "the configuration can be served\n"
        "  mode     ring, interface lo\n"
        "  takeover where kernel and privileges allow it\n"
        f"  workers  1, on CPU {cpu}\n"
        "  UDP      127.0.0.1:3478, [::1]:3478\n"
        "  TCP      127.0.0.1:3478, [::1]:3478\n"
        "  metrics  127.0.0.1:9478\n"
    )
    assert printed.err == ""


WARNED = [
    ('mode = "recvmmsg"\nblocks = 64', ":2: --blocks is of no use: recvmmsg mode has no ring"),
    ("takeover = false", ":1: --takeover is of no use: recvmmsg mode has no ring"),
    ("tls-port = 5350", ":1: --tls-port is of no use without --tls"),
    (
        'port = 4000\nlisten = ["127.0.0.1:5000"]',
        ":1: --port 4000 is of no use: every --listen names another one (--listen: FILE:2)",
    ),
    (
        'classic = true\nlisten = ["::1"]',
        ":1: --classic is of no use: those clients know IPv4 only, and no such address is served",
    ),
    (
        'listen = ["127.0.0.1"]\nalternate-server = ["2001:db8::1"]',
        (
            ":2: --alternate-server [2001:db8::1]:3478 is of no use: no address of its family is "
            "served"
        ),
    ),
    (
        'auth = "long-term"\nrealm = "x"\nusers = "x"',
        (
            ":1: with --auth long-term the answer to a request without credentials is longer than "
            "the request, and its source may be forged: set --rate-limit"
        ),
    ),
]


@pytest.mark.parametrize(
    ("content", "warning"), WARNED, ids=[content.split(" = ")[0] for content, _ in WARNED]
)
def test_what_is_of_no_use_is_a_warning(
    file: Path, capsys: pytest.CaptureFixture[str], content: str, warning: str
) -> None:
    file.write_text(content)
    assert check(str(file), "--any-host") == 0
    said = capsys.readouterr().err.replace(str(file), "FILE")
    assert said == f"pktstun: warning: FILE{warning}\n"


def test_a_file_that_others_may_write_is_a_warning(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text('listen = ["127.0.0.1"]')
    file.chmod(0o646)
    assert check(str(file)) == 0
    assert capsys.readouterr().err == (
        f"pktstun: warning: others may write {file}, and say what is served: 'chmod o-w {file}'\n"
    )


def test_a_key_that_others_may_read_is_a_warning(
    authority: Authority, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(
        f'listen = ["127.0.0.1"]\ntls = true\ntls-certificate = "{authority.chain}"\n'
        f'tls-key = "{authority.key}"\n'
    )
    authority.key.chmod(0o600)
    assert check(str(file)) == 0
    printed = capsys.readouterr()
    assert "  TLS      127.0.0.1:5349\n" in printed.out
    assert printed.err == ""
    authority.key.chmod(0o644)
    assert check(str(file)) == 0
    assert capsys.readouterr().err == (
        f"pktstun: warning: {file}:4: --tls-key: others may read {authority.key}: "
        f"'chmod o= {authority.key}'\n"
    )


# --- Any file ---

# Values that make sense, and some that do not.
VALUES = {
    bool: st.sampled_from(["true", "false"]),
    int: st.sampled_from(["0", "1", "8", "64", "3478", "-5", "99999", "4611686018427387904"]),
    float: st.sampled_from(["0.5", "10", "-1.0", "nan", "inf"]),
    str: st.sampled_from(
        ['"lo"', '"ring"', '"recvmmsg"', '"0-1"', '"auto"', '"long-term"', '""', '"info"', "'é'"]
    ),
    list: st.lists(
        st.sampled_from(
            ['"127.0.0.1"', '"::1"', '"192.0.2.1:0"', '"10.0.0.0/8"', '"a=b"', '"fe80::1%lo"']
        ),
        max_size=3,
    ).map(lambda values: f"[{', '.join(values)}]"),
}


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Draw files of options that there are, mutilated or not."""
    options = draw(st.lists(st.sampled_from(sorted(OPTIONS)), unique=True, max_size=6))
    lines = [f"{option} = {draw(VALUES[OPTIONS[option]])}\n" for option in options]
    content = "".join(lines).encode()
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        at = draw(st.integers(0, len(content)))
        cut = draw(st.integers(0, 4))
        content = content[:at] + draw(st.binary(max_size=2)) + content[at + cut :]
    return content


@given(files(), st.sampled_from([[], ["--any-host"]]))
def test_any_file_is_checked_without_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, more: list[str]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.toml"
    file.write_bytes(content)
    assert check(str(file), *more) in {0, 77, 78}


def same(one: ServeConfig, other: ServeConfig) -> bool:
    secrets = [each.credentials and each.credentials.hand_over() for each in (one, other)]
    return secrets[0] == secrets[1] and replace(one, credentials=None) == replace(
        other, credentials=None
    )


def test_print_config_is_a_file_that_says_where_everything_is_from(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('iface = "nosuch0"\nsoftware = "caf\u00e9"\n', encoding="utf-8")
    monkeypatch.setenv("PKTSTUN_SERVE_PORT", "3479")
    assert main(["serve", "--config", str(file), "--print-config", "--tcp"]) == 0
    printed = capsys.readouterr().out
    lines = dict(re.findall(r"^(?:# )?([a-z-]+).*? # (.*)$", printed, re.MULTILINE))
    assert lines.keys() == OPTIONS.keys() - {"config"}
    assert lines["iface"] == f"{file}:1"
    assert lines["software"] == f"{file}:2"
    assert lines["port"] == "environment PKTSTUN_SERVE_PORT"
    assert lines["tcp"] == COMMAND_LINE
    assert lines["log-level"] == "default"
    assert lines["users"] == "not set"
    assert re.search(r"^# batch = 256 +# default$", printed, re.MULTILINE)
    assert re.search(r"^# stream-requests = 100 +# default$", printed, re.MULTILINE)
    assert 'software = "caf\u00e9" ' in printed
    monkeypatch.delenv("PKTSTUN_SERVE_PORT")
    file.write_text(printed, encoding="utf-8")
    assert main(["serve", "--config", str(file), "--print-config"]) == 0
    assert capsys.readouterr().out.count(f"# {file}:") == len(
        re.findall(r"^[a-z]", printed, re.MULTILINE)
    )


# --- The example that ships ---

LINE = re.compile(r"^#([a-z][a-z0-9-]*) = (.*?)(?:  # (.*))?$", re.MULTILINE)
EXAMPLE_LINES = LINE.findall(EXAMPLE.read_text(encoding="utf-8"))
SHOWN = {option: value for option, value, _ in EXAMPLE_LINES}
NOTES = {option: note for option, _, note in EXAMPLE_LINES}
NEEDS = {
    option: set(re.findall(r"[a-z][a-z-]+", note.partition("with ")[2]))
    for option, note in NOTES.items()
}


def with_all(options: set[str]) -> set[str]:
    """Return options and what they go with, and what that does."""
    more = options.union(*(NEEDS[each] for each in options))
    return options if more == options else with_all(more)


def lines_of(options: set[str]) -> dict[str, str]:
    """Return lines of the example that have an effect."""
    return {each: "true" if OPTIONS[each] is bool else SHOWN[each] for each in sorted(options)}


def config_of(file: Path, lines: dict[str, str]) -> ServeConfig:
    file.write_text("".join(f"{option} = {value}\n" for option, value in lines.items()))
    return cli_serve.read_config(["serve", "--config", str(file)], reads_users=False)


def test_the_example_has_every_option_once() -> None:
    assert len(SHOWN) == len(EXAMPLE_LINES)
    assert SHOWN.keys() == OPTIONS.keys() - {"config"}
    assert all(len(line) <= 80 for line in EXAMPLE.read_text("utf-8").splitlines())


def test_the_example_as_it_is_says_nothing(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(str(EXAMPLE)) == 0
    assert capsys.readouterr().err == ""
    config = cli_serve.read_config(["serve", "--config", str(EXAMPLE)])
    assert config == config_of(file, {})
    assert config.places.keys() == {"config"}


@pytest.mark.parametrize("option", SHOWN)
def test_each_line_of_the_example_is_true(file: Path, option: str) -> None:
    is_condition = NOTES[option].startswith("if true")
    companions = set() if is_condition else with_all({option}) - {option}
    lines = lines_of(companions)
    config = config_of(file, {**lines, option: SHOWN[option]})
    plan(config, imagined=True)
    if "example" not in NOTES[option]:
        assert same(config, config_of(file, lines)), "this is not the default"
    elif not companions:
        assert not same(config, config_of(file, {})), "this is the default"


@pytest.mark.parametrize("option", [option for option in NEEDS if NEEDS[option]])
def test_what_the_example_says_goes_together_does(file: Path, option: str) -> None:
    plan(config_of(file, lines_of(with_all({option}))), imagined=True)
    with pytest.raises(ConfigError):
        plan(config_of(file, lines_of({option})), imagined=True)


@given(st.sets(st.sampled_from(sorted(SHOWN))).map(with_all))
def test_what_is_printed_means_the_same(
    tmp_path_factory: pytest.TempPathFactory, options: set[str]
) -> None:
    """Of any set of the example's lines that make sense together."""
    file = tmp_path_factory.getbasetemp() / "some.toml"
    config = config_of(file, lines_of(options))
    printed = print_out(cli_serve.said(["serve", "--config", str(file)]))
    again = tmp_path_factory.getbasetemp() / "printed.toml"
    again.write_text(printed, encoding="utf-8")
    assert same(config, cli_serve.read_config(["serve", "--config", str(again)], reads_users=False))


def test_every_option_can_be_said_in_a_file() -> None:
    for action in _actions(serve_options()):
        # What a file sets to true must be set to false by a variable or the command line.
        assert action.nargs != 0 or isinstance(action, argparse.BooleanOptionalAction)
        assert action.option_strings[0] == "--" + action.dest.replace("_", "-")
