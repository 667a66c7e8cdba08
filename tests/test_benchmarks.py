"""What the benchmarks share, the pictures of their figures, and that docs/performance.md says what the files say."""

import csv
import shutil
import sys

import pytest
from conftest import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT / "benchmarks"))

import bench  # noqa: E402
import plots  # noqa: E402

from emanet.errors import InputError  # noqa: E402

FIGURES = ROOT / "docs" / "performance"
PAGE = (ROOT / "docs" / "performance.md").read_text("utf-8")


def test_callables_take_turns_and_ratios_are_of_the_same_repeat():
    """On a clock that a callable moves on: plain takes 2, 4, 6 seconds in its repeats, ours half of it."""
    now, order, repeats = [0.0], [], {"plain": 0, "ours": 0}

    def run(name, share):
        order.append(name)
        repeats[name] += 1
        now[0] += 2 * repeats[name] * share

    ways = {"plain": lambda: run("plain", 1), "ours": lambda: run("ours", 0.5)}
    plain, ours = bench.compare(ways, 3, warmup=0, clock=lambda: now[0])
    assert order == ["plain", "ours", "ours", "plain", "plain", "ours"]
    assert (plain["ms"], plain["ms_min"], plain["ms_max"]) == (4000, 2000, 6000)
    assert (ours["ms"], ours["ratio"], ours["ratio_min"], ours["ratio_max"]) == (2000, 2, 2, 2)


def test_the_command_names_no_folder_of_this_machine(monkeypatch, tmp_path):
    arguments = [str(ROOT / "benchmarks/data.py"), "../data/camvid", str(tmp_path / "a.csv"), "--images", "8"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert bench.machine()["command"] == "benchmarks/data.py ../data/camvid a.csv --images 8"


def test_a_table_is_written_and_read_back(tmp_path, capsys):
    rows = [{"name": "plain", "ms": 1.23456}, {"name": "ours", "ms": 0.5}]
    bench.write_csv(tmp_path / "a.csv", rows, {"commit": "abc"})
    with open(tmp_path / "a.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"name": "plain", "ms": "1.23456", "commit": "abc"},
            {"name": "ours", "ms": "0.5", "commit": "abc"},
        ]
    bench.print_table(rows, "Title")
    assert capsys.readouterr().out == "\nTitle\nname      ms\nplain  1.235\nours     0.5\n"


def test_both_kinds_of_processor_are_told_apart(tmp_path, monkeypatch):
    program = tmp_path / "own.py"
    program.write_text(
        "import csv, os, sys\n"
        "assert os.environ['ATEN_CPU_CAPABILITY'] == 'avx2' and sys.argv[1:3] == ['--both', '--csv']\n"
        "with open(sys.argv[-1], 'w', newline='') as file:\n"
        "    csv.writer(file).writerows([['cpu', 'name', 'ms', 'date'], ['avx2', 'ours', '2.5', '2026']])\n"
    )
    monkeypatch.setattr(sys, "argv", [str(program), "--both"])
    monkeypatch.setattr(bench.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    rows = bench.both_kinds([{"name": "ours", "ms": 1.0}])
    assert rows == [{"cpu": "avx512", "name": "ours", "ms": 1.0}, {"cpu": "avx2", "name": "ours", "ms": "2.5"}]
    monkeypatch.setattr(bench.torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert bench.both_kinds([{"name": "ours"}]) == [{"cpu": "avx2", "name": "ours"}]


def test_pictures_of_the_figures(tmp_path):
    pytest.importorskip("matplotlib")
    for file in FIGURES.glob("*.csv"):
        shutil.copy(file, tmp_path)
    plots.main([str(tmp_path)])
    for name in ("attention.png", "targets.png"):
        with Image.open(tmp_path / name) as drawn, Image.open(FIGURES / name) as kept:
            assert drawn.size == kept.size and len(drawn.convert("RGB").getcolors(1 << 20)) > 10
        assert (FIGURES / name).stat().st_size < 100_000
        assert f"](performance/{name})" in PAGE


def test_what_is_missing_or_ambiguous_is_named(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match=r"cannot read .*scaling\.csv: No such file .* writes it with --csv"):
        plots.main([str(tmp_path)])
    bench.write_csv(tmp_path / "data.csv", [{"name": "ours"}, {"name": "ours"}], {})
    with pytest.raises(InputError, match=r"data\.csv has 2 rows of {'name': 'ours'}, not one"):
        plots._row(tmp_path / "data.csv", {"name": "ours"})


@pytest.mark.parametrize("target", plots.TARGETS, ids=lambda target: target.label)
def test_the_page_has_the_files_ratios(target):
    row = plots._row(FIGURES / target.file, target.row)
    ratio, smallest, largest = (float(row[key]) for key in ("ratio", "ratio_min", "ratio_max"))
    assert f"| {ratio:.2f} [{smallest:.2f}, {largest:.2f}] |" in PAGE


@pytest.mark.parametrize("file", sorted(FIGURES.glob("*.csv")), ids=lambda file: file.name)
def test_every_file_is_of_a_machine_date_and_commit_that_the_page_names(file):
    with open(file, newline="", encoding="utf-8") as text:
        (machine,) = {
            tuple(row[key] for key in ("date", "commit", "command", "versions")) for row in csv.DictReader(text)
        }
    date, commit, command, versions = machine
    assert date in PAGE and commit.removesuffix("+") in PAGE
    assert all(part.partition("+")[0] in PAGE for part in versions.split(", "))
    assert command.startswith("benchmarks/") and not any(word.startswith("/") for word in command.split())
