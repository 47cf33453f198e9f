"""tools/scrape_cost.py: what it scrapes with, and how it tells what it has found."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from tests.lab import wait_until
from tests.metrics.test_engine import CPU, Exporter
from tools.scrape_cost import Run, Scraper, report, scrape, spread

if TYPE_CHECKING:
    import pytest


def test_it_scrapes_as_long_as_it_is_told() -> None:
    with tempfile.TemporaryDirectory() as directory, Exporter(f"{directory}/m.sock") as exporter:
        with Scraper(exporter.path, 100.0, CPU) as scraper:
            wait_until(lambda: scraper.scrapes >= 3, "three scrapes")
        seen = scraper.scrapes
        assert scrape(exporter.path).endswith(b"# EOF\n")
        with Scraper(exporter.path, 0.0, CPU) as idle:
            pass
        assert (scraper.scrapes, idle.scrapes) == (seen, 0)


def test_what_it_costs_is_taken_within_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {
        0.0: [Run(100_000.0, 0, 0.1), Run(50_000.0, 0, 0.1)],
        1.0: [Run(99_000.0, 4, 0.108), Run(49_500.0, 4, 0.108)],
        10.0: [Run(98_000.0, 40, 0.18), Run(49_000.0, 40, 0.18)],
    }
    report("recvmmsg", runs, 600_000)
    told = capsys.readouterr().out
    assert "1 scrapes/s cost    1.00 (1.00 to 1.00) % of that" in told
    assert "10 scrapes/s cost    2.00 (2.00 to 2.00) % of that" in told
    assert told.count("2.00 (2.00 to 2.00) ms of CPU time each") == 2


def test_a_spread_is_a_median_and_quartiles() -> None:
    assert spread([3.0, 1.0, 2.0]) == "2 (1 to 3)"
    assert spread([1234.0]) == "1,234"
    assert spread([]) == "-"
