"""What each task of `hope eval` trains and measures: its parts, sizes, lengths and words for the report."""

from __future__ import annotations

from dataclasses import replace

from hope_server.evaluation.families import ABLATIONS, FAMILIES, build, build_equal_state
from hope_server.evaluation.fit import FitSpec, NetworkSpec, Probe
from hope_server.evaluation.formal import LANGUAGES, FormalTask
from hope_server.evaluation.lengths import chosen_lengths, no_lengths
from hope_server.evaluation.mad import CompressionTask, FuzzyRecallTask, MemorisationTask
from hope_server.evaluation.optimizers import OPTIMIZERS, OptimizerSuite
from hope_server.evaluation.outcome import Options
from hope_server.evaluation.perplexity import DEFAULT_TEXT, TextTask
from hope_server.evaluation.recall import NeedleTask, PairsTask, SelectiveCopyTask
from hope_server.evaluation.stories import KINDS, StoryTask
from hope_server.evaluation.streams import StreamTask
from hope_server.evaluation.translation import CASES, TranslationTask
from hope_server.evaluation.trials import Part, TrialSuite

__all__ = [
    "ablation_suite",
    "formal_suite",
    "mad_suite",
    "optimizer_suite",
    "perplexity_suite",
    "recall_suite",
    "stories_suite",
    "streams_suite",
    "translation_suite",
]

ALL = tuple(FAMILIES)
WITHOUT_WINDOW = tuple(family for family in ALL if family != "swa")
_COUNTING = (
    ("num_heads", 6),
    ("head_dim", 8),
    ("num_sums", 3),
    ("objective", "dot"),
    ("max_lr", 2.0),
    ("lr_range", (0.6, 0.95)),
    ("adaptive", ("lr", "retention")),
    ("self_targets", False),
    ("is_residual", False),
    ("has_momentum", True),
    ("conv_size", 1),
)
"""What hope's memories need to count without end, and modulo 2."""
_RECALLING = (
    ("objective", "dot"),
    ("adaptive", ("lr", "retention")),
    ("self_targets", False),
    ("is_residual", False),
)
"""What hope's memories need to learn recall within a few hundred steps."""
_COPYING = (*_RECALLING, ("has_momentum", True), ("num_heads", 3), ("num_sums", 1))
"""The same with a head that sums, for copies are in order."""
_IN_CONTEXT = NetworkSpec(chunk_size=32, level_periods=(64,), level_rank=4, hope=_RECALLING)
"""The networks of tasks that are learned from the row itself."""
_FORMS = (
    "Hope has the form it has in `recall`: memories that generate their own rates, keys and values from the slow"
    " weights, the dot product for an objective. The heads of titans, of matrix memories, and of delta are as large as"
    " hope's state bytes allow."
)
_EQUAL_SIZE = "All families have the same number of parameters up to the rounding of the MLP's width."


def formal_suite(options: Options) -> TrialSuite:
    """Six languages at chunk size 1; lengths are the upper ends of the test bins."""
    ends = chosen_lengths(options, (50, 100, 150), 4)
    network = NetworkSpec(
        hidden_size=32,
        mlp_size=64,
        chunk_size=1,
        max_length=max(50, *ends),
        norm_eps=1e-12,
        hope=_COUNTING,
        is_compiled=not options.is_quick,
    )
    fit = FitSpec(steps=800, batch_size=32, lr=3e-3)
    # Its words vary the most: up to 2,000 steps, until the loss is near the entropy of the targets, 0.09804 nats.
    longer = replace(fit, steps=2000, stop_loss=0.09806)
    parts = []
    for language in LANGUAGES:
        starts = (1, *(end + 1 for end in ends[:-1]))
        bins = zip(starts, ends, strict=True)
        probes = [Probe(f"{first}-{last}", FormalTask(language, first), last, "row") for first, last in bins]
        spec = longer if language == "shuffle-2" else fit
        parts.append(Part(language, FormalTask(language, smoothing=0.02), (50,), tuple(probes), network, spec))
    return TrialSuite(
        "formal",
        "Formal languages",
        "After every character of a word the set of valid next characters, the end included, is to be predicted; a word"
        " counts as right only when every set is. Training words have 1 to 50 characters. The task behind NL Table 5.",
        "words right at every position, %",
        tuple(parts),
        WITHOUT_WINDOW,
        WITHOUT_WINDOW,
        build,
        (
            "Chunk size 1: only then does a write see the write before it, and a step size near 1 reflects the memory"
            " along the key, which counting modulo 2 needs. The gated delta rule is the same function at any chunk.",
            "Of hope's six heads of 8 in each layer three start as running sums, which count, three near reflections."
            " Its memories generate their own rates; keys, values and targets come from the slow weights, for what is"
            " counted must not move with the count (`docs/LOG.md`). It has no convolution.",
            "Training targets are 0.02 and 0.98; a word is judged by the signs of the logits.",
            "No CMS levels: their inner loss is the next token's, and these targets are sets of tokens.",
            "Titans, which takes several times as long as the others, has the first seed alone unless it is asked for.",
            _EQUAL_SIZE,
        ),
        slow=("titans",),
    )


def recall_suite(options: Options) -> TrialSuite:
    """Pairs, needles and selective copying; lengths are the needles' distances."""
    distances = chosen_lengths(options, (32, 128, 512, 1024), 1)
    longest = max(1024, *(each + 16 for each in distances))
    network = NetworkSpec(chunk_size=16, level_periods=(64,), level_rank=4, max_length=longest, hope=_RECALLING)
    fit = FitSpec(steps=500, batch_size=16, lr=4e-3, stop_loss=2e-3)
    pairs = [
        Probe(f"{count} pairs, {length} tokens", PairsTask(count, power=1.0), length, num_rows=128)
        for count, length in ((8, 64), (16, 128), (32, 256), (48, 384), (8, 256), (8, 1024))
    ]
    needles = [Probe(f"distance {each}", NeedleTask(distance=each), 16 + each, num_rows=128) for each in distances]
    copies = [Probe(f"{length} tokens", SelectiveCopyTask(), length) for length in (64, 128, 256)]
    return TrialSuite(
        "recall",
        "Recall in context",
        "Multi-query associative recall and needles among noise tokens at a growing distance (both trained on rows of"
        " 64, 128 and 256 tokens, with a pair to eight tokens, and four needles), and selective copying (trained on 64"
        " tokens).",
        "answers right, %",
        (
            Part("pairs", PairsTask(None, power=0.1), (64, 128, 256), tuple(pairs), network, fit),
            Part("needles", NeedleTask(), (64, 128, 256), tuple(needles), network, fit),
            Part(
                "selective copying",
                SelectiveCopyTask(),
                (64,),
                tuple(copies),
                replace(network, hope=_COPYING),
                replace(fit, steps=800, batch_size=32),
            ),
        ),
        ALL,
        ALL,
        build_equal_state,
        (
            "Hope's memories generate their own rates; keys, values and targets come from the slow weights, and the"
            " objective is the dot product (NL eq. 92): with self-made keys and targets needles are not learned in as"
            " many steps (`docs/LOG.md`). For copying, one of three heads starts as a running sum.",
            "The heads of titans and delta, and the window of swa, are as large as hope's state bytes allow;"
            " transformer sees all. The memories of titans are matrices: its MLPs do not learn pairs in as many steps.",
            _EQUAL_SIZE,
        ),
    )


def mad_suite(options: Options) -> TrialSuite:
    """Compression, fuzzy recall and memorisation."""
    no_lengths(options)
    network = replace(_IN_CONTEXT, level_periods=(), max_length=160)
    fit = FitSpec(steps=600, batch_size=16, lr=4e-3)
    compression, memory = CompressionTask(), MemorisationTask()
    return TrialSuite(
        "mad",
        "MAD-style tasks",
        "Compression of 32 random tokens into the output at the last one, recall of keys and values of several tokens,"
        " and a fixed dictionary learned by the slow weights. Definitions of MAD (arXiv 2403.17844).",
        "tokens right, %",
        (
            Part("compression", compression, (32,), (Probe("32 tokens", compression, 32),), network, fit),
            Part(
                "fuzzy recall",
                FuzzyRecallTask(),
                (128,),
                (Probe("128 tokens", FuzzyRecallTask(is_test=True), 128),),
                network,
                fit,
            ),
            Part("memorisation", memory, (32,), (Probe("32 tokens", memory, 32),), network, fit),
        ),
        WITHOUT_WINDOW,
        WITHOUT_WINDOW,
        build_equal_state,
        (
            "The code of compression is the output vector of 64 numbers, read by one decoder for all.",
            _FORMS,
            _EQUAL_SIZE,
        ),
    )


def stories_suite(options: Options) -> TrialSuite:
    """Three kinds of questions; lengths are those of the stories."""
    tasks = {kind: StoryTask(kind, 12 if kind == "three facts" else 8) for kind in KINDS}
    shortest = max(task.shortest for task in tasks.values())
    lengths = chosen_lengths(options, (128, 256, 512, 1024), shortest)
    network = replace(_IN_CONTEXT, max_length=max(192, *lengths))
    fit = FitSpec(steps=800, batch_size=16, lr=4e-3, stop_loss=5e-3)
    parts = []
    for kind, task in tasks.items():
        probes = tuple(Probe(f"{length} words", task, length, num_rows=128) for length in lengths)
        parts.append(Part(kind, task, (shortest, 128, 192), probes, network, fit))
    return TrialSuite(
        "stories",
        "Stories in prose",
        "People carry things between places, in sentences scattered over prose that has nothing to do with it; where is"
        f" somebody, something, or where was it before? Trained on {shortest} to 192 words. After bAbI 1 to 3.",
        "answers right, %",
        tuple(parts),
        WITHOUT_WINDOW,
        WITHOUT_WINDOW,
        build_equal_state,
        ("Prose and sentences are generated: no part of bAbI or of any book is used.", _FORMS, _EQUAL_SIZE),
    )


def streams_suite(options: Options) -> TrialSuite:
    """One stream of four groups of classes."""
    no_lengths(options)
    task = StreamTask()
    network = replace(_IN_CONTEXT, max_length=task.length)
    fit = FitSpec(steps=800, batch_size=16, lr=4e-3, stop_loss=5e-3)
    return TrialSuite(
        "streams",
        "Class-incremental streams",
        f"Each row invents {task.num_classes} classes, which arrive in {task.num_groups} groups; after each group all"
        " classes so far are asked. `group 1` is what is kept of the first group.",
        "classes right, %",
        (Part("stream", task, (task.length,), (Probe("", task, task.length),), network, fit),),
        WITHOUT_WINDOW,
        WITHOUT_WINDOW,
        build_equal_state,
        (f"Rows have {task.length} tokens. Which classes there are is new in every row.", _FORMS, _EQUAL_SIZE),
    )


def translation_suite(options: Options) -> TrialSuite:
    """Two invented languages, alone and in sequence."""
    no_lengths(options)
    task = TranslationTask()
    probes = [Probe(case, replace(task, case=case), task.length) for case in CASES]
    network = replace(_IN_CONTEXT, max_length=task.length)
    fit = FitSpec(steps=800, batch_size=16, lr=4e-3, stop_loss=1e-2)
    return TrialSuite(
        "translation",
        "Invented languages in sequence",
        "Each row invents lexicon and grammar of one or two languages and teaches them by "
        f"{task.num_taught} sentence pairs each, one language after the other; then sentences are to be translated.",
        "foreign words right, %",
        (Part("languages", task, (task.length,), tuple(probes), network, fit),),
        WITHOUT_WINDOW,
        WITHOUT_WINDOW,
        build_equal_state,
        ("Only words that were taught are asked; the words before the asked one are given.", _FORMS, _EQUAL_SIZE),
    )


def perplexity_suite(options: Options) -> TrialSuite:
    """Families trained on a text byte by byte; the length is that of the test windows."""
    (length,) = chosen_lengths(options, (1024,), 32, most=1)
    train, test = (TextTask(options.text or DEFAULT_TEXT, is_held_out) for is_held_out in (False, True))
    network = NetworkSpec(
        hidden_size=96, num_heads=3, mlp_size=192, chunk_size=32, level_periods=(64, 256), max_length=length
    )
    fit = FitSpec(steps=400, batch_size=8, lr=4e-3)
    return TrialSuite(
        "perplexity",
        "Perplexity against position",
        "Families trained on windows of 256 bytes of a text; measured on windows of its last tenth, which they never"
        " saw, against the position in the window. Perplexities are per byte.",
        "perplexity (lower is better)",
        (Part("text", train, (256,), (Probe("", test, length, "perplexity", 64),), network, fit),),
        ALL,
        WITHOUT_WINDOW,
        build,
        (
            f"Text: {options.text or 'reference of the Python language (pydoc_data)'}, SHA-256 {train.digest}.",
            _EQUAL_SIZE,
        ),
    )


def optimizer_suite(options: Options) -> OptimizerSuite:
    """Five optimizers on the text of `perplexity_suite`."""
    no_lengths(options)
    source = options.text or DEFAULT_TEXT
    network = NetworkSpec(chunk_size=32, level_periods=(64,), max_length=128)
    fit = FitSpec(steps=240, batch_size=8)
    return OptimizerSuite(TextTask(source), TextTask(source, True), build, network, fit, 128, OPTIMIZERS)


def ablation_suite(options: Options) -> TrialSuite:
    """Hope without each of its parts, on a text and on recall."""
    no_lengths(options)
    source = options.text or DEFAULT_TEXT
    network = NetworkSpec(chunk_size=32, level_periods=(64,), max_length=512)
    held_out = Probe("", TextTask(source, True), 512, "perplexity", 64)
    return TrialSuite(
        "ablation",
        "Ablation of hope",
        "Hope with everything (self-made queries and momentum too) and without one part each, trained on a text and on"
        " associative recall. After NL Table 6.",
        "text: perplexity per byte against position (lower is better); pairs: answers right, %",
        (
            Part("text", TextTask(source), (128,), (held_out,), network, FitSpec(steps=300, batch_size=8)),
            Part(
                "pairs",
                PairsTask(8, power=0.1),
                (64,),
                (Probe("8 pairs, 64 tokens", PairsTask(8, power=1.0), 64),),
                replace(network, chunk_size=16, level_periods=(16,)),
                FitSpec(steps=400, batch_size=32, lr=4e-3, stop_loss=2e-3),
            ),
        ),
        ABLATIONS,
        ABLATIONS,
        build,
        ("What is left out is not made up for by other weights: the columns differ in size by what they lack.",),
    )
