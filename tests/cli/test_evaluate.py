"""`hope eval`: what is refused in one line, and a whole run of a stub."""

from __future__ import annotations

import pytest
from stub_evaluation import stub_suite

from hope_server.cli import main
from hope_server.cli.evaluate import shareable
from hope_server.evaluation.registry import TASKS


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Arguments that keep everything below a temporary folder; shipped weights of the package do not count."""
    monkeypatch.setenv("HOPE_CACHE_DIR", str(tmp_path / "cache"))
    return ["--out", str(tmp_path / "out"), "--weights", str(tmp_path / "weights"), "--no-plot"]


def test_tasks_are_listed(capsys):
    """Without a task, all of them are told."""
    assert main(["eval"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(TASKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chess"], f"hope: there is no task 'chess'; valid are {', '.join(TASKS)}\n"),
        (["formal", "--families", "hope,rnn"], "hope: there is no family 'rnn' here; valid are hope, titans, delta,"),
        (["mad", "--parts", "chess"], "hope: there is no part 'chess' here; valid are compression, fuzzy recall"),
        (["optimizers", "--families", "SGD"], "hope: there is no optimizer 'SGD' here; valid are AdamW, Muon, M3"),
        (["formal", "--lengths", "2"], "hope: formal: a length of 2 is not possible; valid are 4 to"),
        (["formal", "--lengths", "2,x"], "hope: --lengths '2,x' are not whole numbers with commas between them"),
        (["formal", "--seeds", "0"], "hope: --seeds must be at least 1, --steps not negative, --jobs 1 to 256"),
        (["formal", "--device", "abacus"], "hope: the device 'abacus' is not there; valid here: cpu"),
        (["perplexity", "--text", "no such file"], "hope: the text 'no such file' cannot be read as a UTF-8 file"),
        (["dialogue", "--model", "no such model"], "hope: "),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, folders, failure_line):
    """Unknown names and impossible values are refused before anything runs, with what is valid."""
    assert main(["eval", *arguments, *folders]) in (1, 2)
    assert failure_line().startswith(message)


def test_a_quick_run_prints_its_table_and_writes_its_report(tmp_path, folders, monkeypatch, capsys):
    """The table goes to stdout, progress and file names to stderr."""
    monkeypatch.setattr("hope_server.evaluation.runner.make_suite", lambda options: stub_suite())
    monkeypatch.setattr("sys.argv", ["hope", "eval", "mad", "--quick"])
    assert main(["eval", "mad", "--quick", *folders]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "|  |  | left | right |"
    assert "4/4 same | again · right" in captured.err
    assert "written: " in captured.err
    page = (tmp_path / "out" / "stub-quick.md").read_text()
    assert "Command: `hope eval mad --quick`" in page
    assert (tmp_path / "cache" / "eval" / "stub").is_dir()


def test_cells_run_in_processes_of_their_own(tmp_path, folders, capsys):
    """With several jobs, a cell runs in a process that makes its suite anew, and its outcome comes back."""
    arguments = ["--families", "transformer", "--parts", "memorisation", "--steps", "2", "--seeds", "1", "--jobs", "2"]
    assert main(["eval", "mad", *arguments, *folders]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[2].startswith("| memorisation | 32 tokens | ")
    assert "1/1 memorisation · transformer · seed 0: " in captured.err


def test_a_report_names_no_folder_of_one_machine():
    """Where cells, results and weights lie is left out of the command that the report shows, in either spelling."""
    words = ["eval", "recall", "--work", "/a", "--out=/b", "--seeds", "2", "--weights", "/c", "--jobs=2"]
    assert shareable(words) == ["eval", "recall", "--seeds", "2", "--jobs=2"]
