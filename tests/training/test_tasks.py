"""Tasks by name, tasks that read text, and mixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hope_server.errors import SettingsError, StartupError
from hope_server.evaluation.formal import FormalTask
from hope_server.evaluation.recall import PairsTask
from hope_server.training.batch import Batch
from hope_server.training.books import BookTask
from hope_server.training.bpe import train_tokenizer
from hope_server.training.dialogues import DialogueTask
from hope_server.training.tasks import MixtureTask, TaskSpec, TokenizerSpec, build_tokenizer, make_task

BOOK = " ".join(f"Sentence number {number} tells of the sea." for number in range(800))
SPEC = TokenizerSpec(vocab_size=600, corpora=("moby_dick",), dialogues=3, book_share=1)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A cache in which one corpus stands already."""
    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "moby_dick.txt").write_text(BOOK)
    return tmp_path


class SameTask:
    """Rows of one token."""

    def __init__(self, token: int, vocab_size: int = 4) -> None:
        self.token, self.vocab_size = token, vocab_size

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw nothing."""
        rows = torch.full((num_rows, length), self.token)
        return Batch(rows, rows, torch.ones(num_rows, length))


def test_a_generated_task_is_the_dataclass_of_its_arguments(tmp_path: Path) -> None:
    """Names and arguments of a recipe make the task that evaluation uses."""
    assert make_task([TaskSpec("pairs", arguments={"num_pairs": 3})], None, tmp_path, "x") == PairsTask(num_pairs=3)
    assert make_task([TaskSpec("formal", arguments={"language": "parity"})], None, tmp_path, "x") == FormalTask(
        "parity"
    )


def test_text_tasks_share_the_recipes_tokenizer(cache_dir: Path) -> None:
    """Dialogues and books can be mixed; the tokenizer is trained once."""
    text = build_tokenizer(SPEC, cache_dir)
    assert len(list((cache_dir / "tokenizers").iterdir())) == 1
    assert build_tokenizer(SPEC, cache_dir) == text
    specs = [
        TaskSpec("dialogues", 3.0, {"corpora": ["moby_dick"], "probe_distances": [32]}),
        TaskSpec("books", 1.0, {"corpora": ["moby_dick"]}),
    ]
    mixture = make_task(specs, text, cache_dir, "x")
    assert isinstance(mixture, MixtureTask)
    batch = mixture.sample(6, 64, torch.Generator().manual_seed(0))
    assert batch.tokens.shape == (6, 64)
    # Only rows of a book score everything alike.
    kinds = [len(set(row.tolist())) == 1 for row in batch.weights]
    assert True in kinds and False in kinds
    assert list(mixture.probes(2, torch.Generator())) == ["recall at 32", "recall at 32, reworded", "held-out text"]


def test_a_mixture_draws_rows_by_weight() -> None:
    """Three rows of one to one of the other, in the long run."""
    mixture = MixtureTask([SameTask(1), SameTask(2)], [3.0, 1.0])
    batch = mixture.sample(4000, 1, torch.Generator().manual_seed(0))
    assert int((batch.tokens == 1).sum()) / 4000 == pytest.approx(0.75, abs=0.03)


def test_tasks_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    """Other vocabularies, or other kinds of targets, cannot share a batch."""
    with pytest.raises(SettingsError, match=r"must share one vocabulary, these have \[4, 5\] tokens"):
        MixtureTask([SameTask(1), SameTask(1, 5)], [1.0, 1.0])
    formal = FormalTask("parity")
    mixture = MixtureTask([SameTask(1, formal.vocab_size), formal], [1.0, 1.0])
    with pytest.raises(SettingsError, match="cannot be mixed"):
        mixture.sample(64, 8, torch.Generator().manual_seed(0))
    with pytest.raises(SettingsError, match="reads text; give the recipe a `tokenizer`"):
        make_task([TaskSpec("books")], None, tmp_path, "x")


def test_books_keep_their_ends_for_measuring() -> None:
    """Training never reads the last twentieth; a row longer than the text is refused."""
    text = " ".join(f"w{number}" for number in range(400))
    tokenizer = train_tokenizer([text], 400)
    task = BookTask(tokenizer, [text], probe_length=8)
    trained = task.sample(200, 32, torch.Generator().manual_seed(0)).targets
    probe = task.probes(50, torch.Generator().manual_seed(0))["held-out text"]
    everything = DialogueTask(tokenizer, []).codec.encode(text)
    cut = len(everything) - len(everything) // 20
    tail = "".join(map(chr, everything[cut:]))
    assert all("".join(map(chr, row)) in tail for row in probe.tokens.tolist())
    assert not any("".join(map(chr, row[-8:])) in tail for row in trained.tolist())
    with pytest.raises(ValueError, match="rows of 10,000 need more"):
        task.sample(1, 10_000, torch.Generator())


def test_a_corpus_that_cannot_be_had_stops_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing data is a start-up error with what to do, before anything is trained."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartupError, match="corpus 'austen' is fetched with apt-get, which is not installed"):
        build_tokenizer(TokenizerSpec(corpora=("austen",)), tmp_path)
