"""`hope bench learning`: what is refused in one line, and what is printed at the end."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hope_server.cli import main
from hope_server.evaluation import learning_bench
from hope_server.evaluation.learning_bench import Found
from hope_server.evaluation.learning_trials import PARTS


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Runs that measure nothing; keeps the options of each."""
    options: list[learning_bench.LearningOptions] = []

    def run(given, say):
        options.append(given)
        say("seed 0 · recall")
        return Found({"recall": {0: {"rank_accuracy": 0.5, "exact": float("nan")}}})

    monkeypatch.setattr(learning_bench, "run_learning", run)
    monkeypatch.setenv("HOPE_CACHE_DIR", str(tmp_path / "cache"))
    return options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "hope: --seeds must be 1 to 1000 and --seed-start not negative"),
        (["--seed-start", "-1"], "hope: --seeds must be 1 to 1000 and --seed-start not negative"),
        (["--choice-items", "0"], "hope: --choice-items must be 1 to 500"),
        (["--delays", "2048,"], "hope: --delays must be rising numbers of tokens, 1 to 32,768, not '2048,'"),
        (["--delays", "8192,2048"], "hope: --delays must be rising numbers of tokens, 1 to 32,768, not '8192,2048'"),
        (["--delays", "32769"], "hope: --delays must be rising numbers of tokens, 1 to 32,768, not '32769'"),
        (["--parts", "recall,chess"], f"hope: there is no part 'chess'; valid are {', '.join(PARTS)}"),
        (["--parts", ","], "hope: there is no part ','; valid are "),
        (["--baselines", "chess"], "hope: there is no baseline 'chess'; valid are no_memory, in_prompt"),
        (["--url", "localhost:8000"], "hope: --url 'localhost:8000' must begin with http:// or https://"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(asked, failure_line, arguments, message):
    """One line that says what is valid, and code 2."""
    assert main(["bench", "learning", *arguments]) == 2
    assert failure_line().startswith(message)
    assert asked == []


def test_a_server_that_does_not_answer_is_one_line(failure_line, free_port, tmp_path, monkeypatch):
    """Code 1, before anything is measured."""
    monkeypatch.setenv("HOPE_CACHE_DIR", str(tmp_path))
    url = f"http://127.0.0.1:{free_port}"
    assert main(["bench", "learning", "--url", url, "--parts", "recall"]) == 1
    assert url in failure_line()


def test_the_last_line_is_one_object(asked, capsys, tmp_path):
    """Tables come before it, progress goes to stderr."""
    assert main(["bench", "learning", "--parts", "recall", "--json", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    figures = json.loads(captured.out.splitlines()[-1])
    assert (figures["rank_accuracy_32"], figures["exact_match_32"]) == (0.5, None)
    assert captured.out.startswith("| measure | median |")
    assert "seed 0 · recall" in captured.err and "written: " in captured.err


def test_a_whole_run_has_five_seeds_and_every_baseline(asked, tmp_path):
    """And keeps what it finished in the cache."""
    main(["bench", "learning", "--out", str(tmp_path / "out"), "--seed-start", "7"])
    (options,) = asked
    assert options.seeds == (7, 8, 9, 10, 11)
    assert (options.parts, options.work) == (tuple(PARTS), tmp_path / "cache" / "bench")
    assert options.baselines[:2] == ("no_memory", "in_prompt")
    assert (options.sizes.facts, options.sizes.many, options.sizes.choices) == (32, 128, 100)


def test_delays_can_be_chosen(asked, tmp_path):
    """Nothing else changes: the longest one takes longer than all other parts together."""
    main(["bench", "learning", "--out", str(tmp_path / "out"), "--delays", "2048, 8192"])
    main(["bench", "learning", "--out", str(tmp_path / "out")])
    chosen, whole = (options.sizes for options in asked)
    assert (chosen.delays, whole.delays) == ((2048, 8192), (2048, 8192, 32_768))
    assert replace(chosen, delays=whole.delays) == whole


@pytest.mark.parametrize("key", [["--api-key", "secret"], ["--api-key=secret"]])
def test_the_report_tells_no_key_and_no_folder(asked, tmp_path, monkeypatch, key):
    """The command that it names is one that others can use."""
    words = ["bench", "learning", *key, "--url", "http://127.0.0.1:9", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["hope", *words])
    main(words)
    assert asked[0].command == "hope bench learning --url http://127.0.0.1:9"
    assert asked[0].api_key == "secret" and asked[0].baselines == ()


def test_a_quick_run_is_small(asked, tmp_path):
    """Eight facts, one seed, no baselines, no 32K tokens, 20 items of each set."""
    main(["bench", "learning", "--quick", "--out", str(tmp_path / "out")])
    (options,) = asked
    assert (options.seeds, options.baselines) == ((0,), ())
    assert (options.sizes.facts, options.sizes.choices, options.sizes.delays) == (8, 20, (2_048, 8_192))
