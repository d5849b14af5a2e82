"""The pipeline itself: a whole run of the smoke preset in a copy of the tree, and what happens to it afterwards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from page import Browser, needs_chromium
from tree import Tree, variables

# all tables, without figures and page, which take longer
TABLES = ("results/tables/cells.csv", "results/tables/claims.csv")

# they share one copy of the tree, so that `make test` gives a worker whole files (--dist loadfile)
pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    result = Tree(tmp_path_factory.mktemp("tree"))
    answer = result.snakemake()
    assert answer.returncode == 0, answer.stdout
    return result


# words of a drawing that reach beyond it, where they are not seen
CUT = """[...document.querySelectorAll("svg.panel")].flatMap((panel) => {
  const box = panel.getBoundingClientRect();
  return [...panel.querySelectorAll("text")].filter((each) => {
    const at = each.getBoundingClientRect();
    return Math.max(at.right - box.right, box.left - at.left, at.bottom - box.bottom, box.top - at.top) > 1;
  }).map((each) => `${panel.querySelector("title").textContent}: ${each.textContent}`);
})"""


@needs_chromium
def test_no_figure_of_the_page_cuts_off_its_words(tree: Tree) -> None:
    with Browser() as browser:
        browser.open(tree.folder / "results/report.html", 1300)
        assert browser.evaluate("document.querySelectorAll('svg.panel text').length") > 1000
        assert browser.evaluate(CUT) == []
        assert browser.console == []
        assert browser.outgoing() == []


def test_smoke_run_makes_the_report_with_every_run_in_it(tree: Tree) -> None:
    assert 10_000 < (tree.folder / "results/report.html").stat().st_size < 2_000_000
    provenance = json.loads((tree.folder / "results/tables/provenance.json").read_text())
    assert provenance["missing"] == []
    assert provenance["diverged"] == []
    assert tree.finished() == {run.folder for run in tree.asked_for()}
    assert {run.study for run in tree.asked_for()} >= {"cleaning_published", "bias_quadratic", "memory"}
    assert all(path.stat().st_size > 0 for path in (tree.folder / "results/logs/runs").rglob("*.log"))


def test_a_second_run_has_nothing_to_do(tree: Tree) -> None:
    answer = tree.snakemake()
    assert answer.returncode == 0
    assert "Nothing to be done" in answer.stdout


def test_editing_a_method_re_runs_that_method_only(tree: Tree) -> None:
    with tree.edited("src/bilevel/hypergradients/truncated.py", "kept = min(self.steps", "kept = 0 + min(self.steps"):
        rows = {row for row, method in tree.rows().items() if method == "truncated"}
        assert rows >= {f"{study}/t1_t2" for study in ("cleaning_corrected", "bias_quadratic", "bias_logistic")}
        assert tree.planned() == rows
    with tree.edited("src/bilevel/tasks/cleaning_published/drmad.py", "reversed(range(steps))", "range(steps)[::-1]"):
        assert tree.planned() == {"cleaning_published/drmad"}
    assert tree.planned() == set()


def test_editing_a_setting_re_runs_what_it_touches_only(tree: Tree) -> None:
    with tree.edited(
        "config.yaml", "gamma_1: {method: aggregated, gamma: 1.0}", "gamma_1: {method: aggregated, gamma: 0.5}"
    ):
        assert tree.planned() == {"cleaning_corrected/gamma_1"}


def test_threads_are_part_of_a_run_and_where_data_come_from_is_not(tree: Tree) -> None:
    with tree.edited("config.yaml", "threads: 1", "threads: 2"):
        assert tree.planned() == {f"{run.study}/{run.method}" for run in tree.asked_for()}
    (tree.folder / "empty").mkdir()
    with tree.edited("config.yaml", "directories: []", "directories: [empty]"):
        assert tree.planned() == set()


def test_comments_and_newer_files_re_run_nothing(tree: Tree) -> None:
    for path in (tree.folder / "src").rglob("*.py"):
        path.touch()
    with tree.edited("src/bilevel/derivatives.py", '"""First and second', '"""The first and second'):
        assert tree.planned() == set()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("compute:", "computing:", "computing: unknown key"),
        ("{method: drmad}", "{method: dramd}", "unknown method; there are aggregated"),
        ("data: mnist_5k", "data: mnist_5000", "unknown data set; there are mnist_5k"),
        ("seeds: 3", "seeds: [-1]", "expected a number of seeds from 1, or a list of seeds from 0"),
        ("settings: {outer_steps: 10}", "settings: {learning_rate: 1e-3}", "write 1.0e-03, with a point"),
        ("directories: []", "directories: [nowhere]", "data.directories.0: no such directory: nowhere"),
    ],
)
def test_a_wrong_configuration_stops_before_any_job(tree: Tree, old: str, new: str, message: str) -> None:
    before = tree.tables()
    with tree.edited("config.yaml", old, new):
        # the preset is laid over seeds and settings, so it is left out
        command = [sys.executable, "-m", "snakemake", "--cores", "1"]
        answer = subprocess.run(
            command,
            cwd=tree.folder,
            env=variables(tree.folder),
            capture_output=True,
            text=True,
            check=False,
        )
    assert answer.returncode != 0
    assert message in answer.stderr + answer.stdout
    assert "Traceback" not in answer.stderr + answer.stdout
    assert "localrule" not in answer.stdout
    assert tree.tables() == before


def test_a_corrupted_file_in_a_data_directory_stops_at_its_job(tree: Tree) -> None:
    folder = tree.folder / "files" / "mnist"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + b"\0" * 100)
    before = tree.tables()
    with (
        tree.edited("config.yaml", "directories: []", "directories: [files]"),
        tree.edited("config.yaml", "\n    data: mnist_5k", "\n    data: mnist"),
    ):
        answer = tree.snakemake("results/data/mnist.json")
    assert answer.returncode != 0
    assert "train-images-idx3-ubyte" in answer.stdout
    assert not (tree.folder / "results/data/mnist.json").exists()
    assert tree.finished() == {run.folder for run in tree.asked_for()}
    # runs of the data set that was asked for are missing; those of another one do not stand in for them
    assert len(tree.gaps()) == 6 * 2
    assert tree.tables() == before


def test_a_failed_run_is_a_gap_in_a_report_that_is_still_made(tree: Tree) -> None:
    before = tree.tables()
    with tree.edited(
        "src/bilevel/tasks/cleaning_published/drmad.py",
        "        derivatives.cost.hold(2)",
        "        1 / 0\n        derivatives.cost.hold(2)",
    ):
        answer = tree.snakemake()
        assert answer.returncode != 0
        assert "ZeroDivisionError" in answer.stdout
    assert tree.gaps() == [{"method": "drmad", "seed": seed, "study": "cleaning_published"} for seed in (0, 1)]
    assert "results/partial/report.html" in answer.stdout
    assert (tree.folder / "results/partial/report.html").stat().st_size > 10_000
    answer = tree.snakemake(*TABLES)
    assert answer.returncode == 0, answer.stdout
    assert tree.tables() == before


def test_tables_are_byte_identical_with_another_number_of_cores(tree: Tree) -> None:
    before = tree.tables()
    for method in ("exact", "gamma_0.99"):
        shutil.rmtree(tree.folder / "results/runs/cleaning_corrected" / method)
    shutil.rmtree(tree.folder / "results/tables")
    answer = tree.snakemake(*TABLES, cores=1)
    assert answer.returncode == 0, answer.stdout
    assert tree.tables() == before


def test_a_data_file_that_changed_under_way_is_refused(tree: Tree) -> None:
    file = tree.folder / "results/data/mnist_5k.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    folder = tree.folder / "results/runs/cleaning_corrected/none"
    record = "results/runs/cleaning_corrected/none/0-1/record.json"
    shutil.rmtree(folder)
    try:
        answer = tree.snakemake(record)
        assert answer.returncode != 0
        assert "mnist_5k.safetensors" in answer.stdout
        assert "Traceback" not in answer.stdout
    finally:
        file.write_bytes(whole)
    assert tree.snakemake(record).returncode == 0
