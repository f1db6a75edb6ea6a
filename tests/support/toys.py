"""Toy models and engines: a few thousand random weights, a byte tokenizer, chunks of 8 and blocks of 16 tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer

from hope_server.engine.assembly import assemble
from hope_server.engine.cards import CardMaker
from hope_server.engine.consolidation import GuardPiece, make_guard
from hope_server.engine.detokenizer import StreamingDetokenizer
from hope_server.engine.engine import Engine
from hope_server.engine.memory_writer import MemoryWriter, WriterSettings
from hope_server.engine.rehearsal import Frame, RehearsalSettings
from hope_server.engine.run import FeedToken, Generation, Prepared, Run, RunEvent
from hope_server.engine.runner import Runner
from hope_server.engine.slots import SlotPool
from hope_server.engine.speller import Speller
from hope_server.engine.study import StudyDesk
from hope_server.engine.tokenizer import Tokenizer
from hope_server.engine.turn import SessionKey
from hope_server.model.base_import import BaseModel, TokenizerSource
from hope_server.model.config import HopeConfig, LevelSpec, ModelConfig, WindowSpec
from hope_server.model.families import family_config, retrofitted
from hope_server.model.hope import HopeModel
from hope_server.model.model_cache import install_model
from hope_server.model.params import Params, fuse_params, random_params, random_weights
from hope_server.model.state import FastState, empty_state
from hope_server.settings import Settings

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nHi<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MODEL = ModelConfig("toy", 300, 32, 48, 4, 4, 2, 8, 10_000.0, 1e-5, 4096, True)
SLOW = LevelSpec("slow", (1, 2), rank=3, update_period=16, lr=2e-2)
FAST = LevelSpec("fast", (2, 3), rank=2, schedule="online", update_period=8, lr=1e-2)
CONFIG = HopeConfig(MODEL, WindowSpec(64, 2, "model"), (FAST, SLOW), 8)
ROUNDED = replace(CONFIG, window=WindowSpec(64, 2, "bfloat16"))
SERVED = replace(CONFIG, window=WindowSpec(320, 2, "bfloat16"))
RESIDUAL = replace(FAST, name="near", kind="residual", rank=4)
FAMILIES = {
    "hope": family_config("hope", MODEL, CONFIG.window, 8),
    "hope, online levels": family_config("hope", MODEL, CONFIG.window, 8, {"reads": "current"}, (FAST, RESIDUAL)),
    "hope, all levels": family_config("hope", MODEL, CONFIG.window, 8, {"has_momentum": True}, (FAST, SLOW)),
    "hope-attention": CONFIG,
    "retrofit": family_config("retrofit", MODEL, CONFIG.window, 8, {"blocks": (1, 3)}, (FAST, SLOW)),
    "transformer": family_config("transformer", MODEL, CONFIG.window, 8),
    "titans": family_config("titans", MODEL, CONFIG.window, 8, {"hidden_size": 6}),
    "delta": family_config("delta", MODEL, CONFIG.window, 8),
}
"""A config of every family, and of `hope` with memory levels too."""
KEY = SessionKey("default", "ada")


def make_params(dtype: torch.dtype = torch.float64, model: ModelConfig = MODEL, seed: int = 0) -> Params:
    """Random slow weights."""
    return fuse_params(model, random_weights(model, seed, dtype))


def family_params(config: HopeConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> Params:
    """Random slow weights of any family; what Titans memories find weighs as much as the MLPs, in branches too."""
    if config.titans is None:
        return make_params(dtype, config.model, seed)
    is_branch = config.titans.beside_attention
    base = make_params(dtype, config.model, seed)
    drawn = retrofitted(base, config, seed) if is_branch else random_params(config, seed, dtype)
    changes = {
        name: 5 * tensor if name.endswith("titans.out") else torch.full_like(tensor, 0.5)
        for name, tensor in drawn.named().items()
        if name.endswith(("titans.out", "titans.branch"))
    }
    return drawn.replaced(drawn.named() | changes)


def rows_with_a_past(model: HopeModel, params: Params, lengths: Sequence[int]) -> FastState:
    """Sessions that have read so many tokens; all but the first have memories of their own."""
    state = empty_state(model.memory, len(lengths), params.dtype)
    generator = torch.Generator().manual_seed(1)
    for row, length in enumerate(lengths):
        for start in range(0, length, 16):
            tokens = torch.randint(0, 256, (1, min(16, length - start)), generator=generator)
            model.prefill(params, state.rows(row, row + 1), tokens)
        for level in state.levels.values():
            drift = torch.randn(level.weights.shape[1], generator=generator, dtype=torch.float64)
            level.weights[row] += (0.05 * row * drift).to(params.dtype)
            level.num_writes[row] = row
    return state


def make_tokenizer() -> Tokenizer:
    """One token a byte, and ChatML's special tokens; id 257 ends a reply."""
    return Tokenizer(tokenizer_source(), MODEL.vocab_size)


def tokenizer_source() -> TokenizerSource:
    """The toy tokenizer as a model folder holds it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = FastTokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    return TokenizerSource(fast.to_str(), TEMPLATE, (257,), None, None)


def write_trained(folder: Path, config: HopeConfig, params: Params, dtype: torch.dtype = torch.float16) -> Path:
    """Write a HOPE model as training exports it: its config as a section, its weights by name in `dtype`."""
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in params.named().items()}
    section = {key: value for key, value in asdict(config).items() if key != "model"}
    base = BaseModel(config.model, tokenizer_source(), tensors)
    install_model(base, "toy recipe", folder, lambda stage, fraction: None, section)
    return folder


@dataclass
class Bench:
    """A runner with everything below it, driven by hand in the calling thread."""

    config: HopeConfig = CONFIG
    dtype: torch.dtype = torch.float64
    num_slots: int = 3
    is_automatic: bool = True
    params: Params = field(init=False)
    runner: Runner = field(init=False)
    events: list[RunEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.params = family_params(self.config, self.dtype)
        self.model = HopeModel(self.config, self.dtype, self.params)
        self.tokenizer = make_tokenizer()
        guards: list[GuardPiece] = make_guard(self.model, self.params, [(5, 9, 20, 7, 8), (40, 41, 42, 43)], 16)
        # The template's own frame would be most of a toy's window; a short one leaves it to the text.
        self.speller = Speller(self.tokenizer)
        self.speller.frame = Frame(((256,), (256, 65)), (257,), (256, 66), (10,), (257,))
        settings = WriterSettings(self.is_automatic, 16, 8, RehearsalSettings(group=8, passage=6))
        desk = StudyDesk(CardMaker(self.tokenizer.encode, self.tokenizer.decode, self.speller.frame))
        self.writer = MemoryWriter(self.model, self.params, guards, self.speller, desk, settings)
        self.pool = SlotPool(self.model.memory, self.num_slots, self.dtype)
        self.runner = Runner(self.model, self.params, self.pool, self.writer, self.tokenizer, "toy")

    def run(self, tokens: Iterable[int], **changes: object) -> Run:
        """A turn that reads tokens of the user's and learns; `changes` are fields of Run."""
        feed = deque(FeedToken(token, "user", 2) for token in tokens)
        base = Run(emit=self.events.append, feed=feed, key=KEY, learns=True)
        return replace(base, **changes)

    def finish(self, *runs: Run) -> None:
        """Seat turns and compute them together until all have ended."""
        for run in runs:
            if run.slot < 0:
                self.runner.seat(run)
        while any(run.wants != "nothing" for run in runs):
            decoding = [run for run in runs if run.wants == "decode"]
            if decoding:
                self.runner.decode(decoding)
                for run in decoding:
                    self.runner.move_on(run)
            for run in runs:
                if run.wants == "read":
                    self.runner.read(run)
                elif run.wants == "consolidate":
                    self.runner.consolidate(run)

    def in_turns(self, tokens: Sequence[int], *bounds: int) -> Run:
        """Feed tokens to one session in turns that end at the bounds; the last turn, committed, is returned."""
        version, run, start = None, self.run([]), 0
        for number, stop in enumerate((*bounds, len(tokens))):
            run = self.run(tokens[start:stop], version=version)
            version, start = f"v{number}", stop
            self.turn(run, version)
        return run

    def turn(self, run: Run, version: str = "v1") -> Prepared:
        """Compute a turn to its end and commit it in memory under `version`."""
        self.finish(run)
        prepared = self.events[-1]
        assert isinstance(prepared, Prepared)
        self.runner.commit(run, version)
        return prepared


@dataclass
class ScriptedSampler:
    """Says the given tokens, whatever the logits, and keeps the logits it was shown."""

    tokens: list[int]
    seen: list[torch.Tensor] = field(default_factory=list)

    def sample(self, logits: torch.Tensor) -> int:
        """Return the next token of the script."""
        self.seen.append(logits.clone())
        return self.tokens[len(self.seen) - 1]

    def observe(self, token_id: int) -> None:
        """Nothing to note."""


def scripted(bench: Bench, tokens: Sequence[int], source: str | None = "user") -> Generation:
    """A reply that consists of the given tokens and counts as read text: the way through decode."""
    sampler = ScriptedSampler(list(tokens))
    detokenizer = StreamingDetokenizer(bench.tokenizer)
    return Generation(sampler, detokenizer, frozenset(), len(tokens), (), 2)  # type: ignore[arg-type]


def toy_settings(store: Path | str, **changes: object) -> Settings:
    """Settings of a toy engine."""
    values: dict[str, object] = {
        "store": str(store),
        "model": "toy",
        "window": 64,
        "consolidation_block": 16,
        "consolidation_delay": 8,
        "num_slots": 3,
        "passes_learn": 3,
        "passes_user": 2,
        "drain_seconds": 2.0,
    }
    return Settings(**(values | changes))


def toy_engine(
    store: Path | str, config: HopeConfig = SERVED, params: Params | None = None, **changes: object
) -> Engine:
    """An engine on random weights in float32; `store` is a path or a URL, `changes` are settings."""
    params = params or family_params(config, torch.float32)
    return assemble(toy_settings(store, **changes), config, params, make_tokenizer(), "toy-weights")
