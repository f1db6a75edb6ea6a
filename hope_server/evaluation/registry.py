"""The tasks of `hope eval` by name."""

from __future__ import annotations

from collections.abc import Callable

from hope_server.evaluation.outcome import Options, Suite

__all__ = ["TASKS", "make_suite"]

TASKS = {
    "formal": "six formal languages, in and beyond the training length",
    "recall": "key-value recall, needles against distance, selective copying",
    "mad": "compression, fuzzy recall, memorisation",
    "stories": "bAbI-like questions about people and things, set in prose",
    "streams": "classes that arrive group by group",
    "translation": "two invented languages learned in sequence",
    "perplexity": "perplexity against position, of families or of --model",
    "optimizers": "outer optimizers on one small network",
    "ablation": "hope without each of its parts",
    "dialogue": "recall of facts in a chat against distance, of --model",
}


def make_suite(options: Options) -> Suite:
    """Return the suite that `options.task` names. Raises ValueError, which lists the valid names or lengths."""
    if options.task not in TASKS:
        raise ValueError(f"there is no task {options.task!r}; valid are {', '.join(TASKS)}")
    from hope_server.evaluation import catalogue, served

    makers: dict[str, Callable[[Options], Suite]] = {
        "formal": catalogue.formal_suite,
        "recall": catalogue.recall_suite,
        "mad": catalogue.mad_suite,
        "stories": catalogue.stories_suite,
        "streams": catalogue.streams_suite,
        "translation": catalogue.translation_suite,
        "perplexity": lambda each: served.text_suite(each) if each.model else catalogue.perplexity_suite(each),
        "optimizers": catalogue.optimizer_suite,
        "ablation": catalogue.ablation_suite,
        "dialogue": served.dialogue_suite,
    }
    return makers[options.task](options)
