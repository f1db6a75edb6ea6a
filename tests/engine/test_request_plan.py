"""From requests to runs: what is new, who teaches, how often each kind of text is rehearsed, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hope_memory.protocol import CommitInfo, SessionId, SessionRecord
from toys import make_tokenizer

from hope_server.engine.paths import find_path
from hope_server.engine.request_plan import PlanSettings, RequestPlanner, effort
from hope_server.engine.run import FeedToken, Run
from hope_server.engine.transcript import Conversation, chains, system_digest
from hope_server.engine.turn import (
    ChatRequest,
    LearnRequest,
    MemoryOptions,
    Message,
    SamplingParams,
    ScoreRequest,
    SessionKey,
    TextRequest,
)
from hope_server.errors import InvalidRequest, PromptTooLong

pytestmark = pytest.mark.anyio
TOKENIZER = make_tokenizer()
SETTINGS = PlanSettings(200, 10, 5, 2, 30, max_passes=50, max_completion_tokens=40, levels=("fast", "slow"))
PLANNER = RequestPlanner(TOKENIZER, SETTINGS)
KEY = SessionKey("t", "ada")
NEW = SessionRecord(SessionId("t", "ada"), 0.0, 0.0, None)
SYSTEM = Message("system", "Be brief.")
ONE, REPLY, TWO = Message("user", "My cat is red."), Message("assistant", "Nice!"), Message("user", "And fat.")


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only."""
    return "asyncio"


def version_of(*messages: Message) -> CommitInfo:
    """A commit of a session that has had this conversation."""
    return CommitInfo("v7", None, 7, 0.0, 0, Conversation().hear(messages).fields())


def record_of(head: CommitInfo) -> SessionRecord:
    """A session whose head is this commit."""
    return SessionRecord(SessionId("t", "ada"), 0.0, 0.0, head)


async def chat(
    *messages: Message, base: CommitInfo | None = None, record: SessionRecord | None = NEW, **memory: Any
) -> Run:
    """Plan a chat."""
    record = record_of(base) if base is not None and record is NEW else record
    request = ChatRequest(messages, session=KEY, memory=MemoryOptions(**memory))
    path = None if record is None else await find_path(request, record, no_versions)
    return await PLANNER.chat(request, record, path)


async def no_versions() -> list[CommitInfo]:
    """No version is kept but the head."""
    return []


def text_of(run: Run) -> str:
    """What a run reads, special tokens included."""
    names = {256: "<s>", 257: "</s>"}
    return "".join(names.get(item.token) or TOKENIZER.decode([item.token]) for item in run.feed)


def taught(run: Run) -> list[tuple[str, str, int]]:
    """Texts that teach with their sources and passes, neighbours joined."""
    found: list[tuple[str | None, list[int], int]] = []
    for item in run.feed:
        if found and found[-1][0] == item.source and found[-1][2] == item.passes:
            found[-1][1].append(item.token)
        else:
            found.append((item.source, [item.token], item.passes))
    return [(TOKENIZER.decode(tokens), source, passes) for source, tokens, passes in found if source is not None]


async def test_a_first_message_is_rendered_from_the_beginning() -> None:
    """A new session reads the template's beginning, the message, and the request to reply."""
    run = await chat(ONE)
    assert text_of(run) == "<s>system\nHi</s>\n<s>user\nMy cat is red.</s>\n<s>assistant\n"
    assert (run.key, run.version, run.learns, run.keep_window) == (KEY, None, True, True)
    assert run.conversation.chain == chains([ONE])[-1]


async def test_only_what_users_and_assistants_say_teaches() -> None:
    """Contents of user and assistant with their own passes; no system, no tool, no template."""
    run = await chat(SYSTEM, ONE, REPLY, Message("tool", "4 dogs"), TWO)
    assert taught(run) == [("My cat is red.", "user", 5), ("Nice!", "assistant", 2), ("And fat.", "user", 5)]
    assert all(item.passes == 0 for item in run.feed if item.source is None)


@pytest.mark.parametrize(("passes", "user", "own"), [(None, 5, 2), (0, 0, 0), (1, 1, 1), (2, 2, 2), (40, 40, 2)])
async def test_asked_passes_apply_to_users_and_bound_the_assistants(passes: int | None, user: int, own: int) -> None:
    """A request's effort is what its user's text gets; the model's own words never get more than the server gives."""
    run = await chat(ONE, REPLY, TWO, passes=passes)
    assert [found[2] for found in taught(run)] == [user, own, user]
    assert run.generation is not None
    assert run.generation.passes == own


@pytest.mark.parametrize("mode", ["read", "off"])
async def test_a_turn_that_does_not_write_teaches_nothing(mode: str) -> None:
    """Nothing of it would be rehearsed, and it does not learn."""
    run = await chat(ONE, mode=mode)
    assert (taught(run), run.learns) == ([], False)


async def test_a_stateless_turn_has_no_session_and_does_not_learn() -> None:
    """Without a record there is nobody to remember."""
    run = await chat(ONE, record=None)
    assert (run.key, run.version, run.learns, taught(run)) == (None, None, False, [])


async def test_a_full_history_and_the_new_message_alone_are_one_request() -> None:
    """Both read the same tokens, behind the reply that closed the conversation, and leave the same chain."""
    base = version_of(SYSTEM, ONE, REPLY)
    full, short = await chat(SYSTEM, ONE, REPLY, TWO, base=base), await chat(TWO, base=base)
    assert text_of(full) == text_of(short) == "<s>user\nAnd fat.</s>\n<s>assistant\n"
    assert full.conversation.chain == short.conversation.chain == chains([SYSTEM, ONE, REPLY, TWO])[-1]
    assert (full.version, full.conversation.systems) == ("v7", short.conversation.systems)


async def test_a_full_history_with_replies_that_the_session_never_saw_is_read_on_from_where_it_is_known() -> None:
    """Turns that were held elsewhere are new, the replies in them too."""
    base = version_of(ONE, REPLY)
    run = await chat(ONE, REPLY, TWO, Message("assistant", "Oh."), Message("user", "Yes."), base=base)
    assert taught(run) == [("And fat.", "user", 5), ("Oh.", "assistant", 2), ("Yes.", "user", 5)]


async def test_a_system_message_that_comes_with_every_message_is_read_once() -> None:
    """Only a system message that the session was never given is rendered again; both are remembered then."""
    base = version_of(SYSTEM, ONE, REPLY)
    assert text_of(await chat(SYSTEM, TWO, base=base)) == text_of(await chat(TWO, base=base))
    other = Message("system", "Be long.")
    run = await chat(other, TWO, base=base)
    assert "Be long." in text_of(run)
    assert run.conversation.systems == (system_digest(SYSTEM), system_digest(other))


async def test_a_session_that_has_only_learned_begins_its_chat() -> None:
    """Without a conversation the template's beginning is read, with the memory of what was learned."""
    base = version_of()
    run = await chat(ONE, base=base)
    assert text_of(run).startswith("<s>system\nHi</s>\n")
    assert run.version == "v7"


async def test_a_turn_without_the_window_reads_all_of_its_messages_from_the_beginning() -> None:
    """With the window emptied, nothing that was read before is there to continue."""
    base = version_of(ONE, REPLY)
    run = await chat(ONE, REPLY, TWO, base=base, mode="read", window=False)
    assert text_of(run).startswith("<s>system\nHi</s>\n<s>user\nMy cat is red.")
    assert (run.version, run.keep_window) == ("v7", False)


async def test_a_request_without_anything_new_is_refused() -> None:
    """No messages at all, or only a system message that was read before."""
    with pytest.raises(InvalidRequest, match="messages is empty") as caught:
        await chat()
    assert caught.value.param == "messages"
    with pytest.raises(InvalidRequest, match="has read all of these messages already"):
        await chat(SYSTEM, base=version_of(SYSTEM, ONE, REPLY))


async def test_a_prompt_over_the_limit_is_refused_with_both_numbers() -> None:
    """The limit is on what is new: a long history that was read already does not count."""
    with pytest.raises(PromptTooLong) as caught:
        await chat(Message("user", "x" * 300))
    assert (caught.value.num_tokens > 300, caught.value.limit) == (True, 200)
    long = Message("user", "x" * 300)
    run = await chat(long, REPLY, TWO, base=version_of(long, REPLY))
    assert "x" not in text_of(run)


async def test_a_reply_is_planned_as_the_request_asks() -> None:
    """Length, stops and the model's own end tokens reach the generation, and the tokens that close a reply."""
    sampling = SamplingParams(max_tokens=7, stop=("END",))
    run = await PLANNER.chat(ChatRequest((ONE,), sampling), None)
    assert run.generation is not None
    assert (run.generation.max_tokens, run.generation.eos_ids) == (7, frozenset({257}))
    assert run.generation.closing == TOKENIZER.close_assistant()


async def test_a_text_to_learn_teaches_whole_and_keeps_the_conversation() -> None:
    """All of its tokens are `text` with the server's passes, a line break ends it, and the chain stays."""
    base = version_of(SYSTEM, ONE, REPLY)
    run = await PLANNER.learn(LearnRequest(KEY, "  The barn is red.\n"), record_of(base))
    assert taught(run) == [("The barn is red.", "text", 30)]
    assert run.feed[-1] == FeedToken(TOKENIZER.encode("\n")[0])
    before = Conversation.of(base.meta)
    assert (run.conversation.chain, run.conversation.systems) == (before.chain, before.systems)
    assert run.conversation.epoch != before.epoch
    assert (run.learns, run.version, run.generation) == (True, "v7", None)
    assert run.rehearsal is not None
    assert run.rehearsal.passes == 30


async def test_asked_passes_are_kept_however_long_the_text() -> None:
    """What a caller asks for is done; only the default is spread over a long text."""
    text = "word " * 1000
    asked = await PLANNER.learn(LearnRequest(KEY, text, passes=9), NEW)
    default = await PLANNER.learn(LearnRequest(KEY, text), NEW)
    for run, passes in ((asked, 9), (default, effort(4999, 30))):
        assert run.rehearsal is not None
        assert run.rehearsal.passes == passes
        assert {item.passes for item in run.feed if item.source} == {passes}


async def test_an_operator_bounds_replies_and_rehearsals() -> None:
    """What asks for more passes or a longer reply than the server gives has what it gives."""
    run = await chat(ONE, passes=900)
    assert {item.passes for item in run.feed if item.source == "user"} == {SETTINGS.max_passes}
    run = await PLANNER.learn(LearnRequest(KEY, "A text.", passes=51), NEW)
    assert {item.passes for item in run.feed if item.source == "text"} == {SETTINGS.max_passes}
    generation = (await chat(ONE)).generation
    assert generation is not None
    assert generation.max_tokens == SETTINGS.max_completion_tokens < SamplingParams().max_tokens


async def test_consolidating_reads_nothing() -> None:
    """Without text there is only the rehearsal of what was read before."""
    run = await PLANNER.learn(LearnRequest(KEY, None, passes=3), NEW)
    assert (len(run.feed), run.learns) == (0, True)
    assert run.rehearsal is not None
    assert run.rehearsal.passes == 3


async def test_an_empty_text_is_refused() -> None:
    """White space teaches nothing."""
    with pytest.raises(InvalidRequest, match="text is empty") as caught:
        await PLANNER.learn(LearnRequest(KEY, " \n"), NEW)
    assert caught.value.param == "text"


@pytest.mark.parametrize(
    ("num_tokens", "passes", "expected"),
    [(1, 30, 30), (2048, 30, 30), (2049, 30, 29), (4096, 30, 15), (40_000, 30, 2), (40_000, 1, 1), (40_000, 0, 0)],
)
def test_default_effort_is_spread_over_a_long_text(num_tokens: int, passes: int, expected: int) -> None:
    """Short texts get all passes; long ones share them, down to two passes or what there is."""
    assert effort(num_tokens, passes) == expected


def test_effort_never_rises_with_length() -> None:
    """A longer text is never rehearsed more often than a shorter one."""
    found = [effort(num_tokens, 30) for num_tokens in range(1, 20_000, 7)]
    assert found == sorted(found, reverse=True)


async def test_a_score_continues_an_open_reply() -> None:
    """A last message of the assistant's is left open; the continuation follows it directly, and nothing learns."""
    request = ScoreRequest((" red",), (ONE, Message("assistant", "It is")))
    run = await PLANNER.score(request, None)
    assert text_of(run).endswith("<s>assistant\nIt is")
    assert run.scoring is not None
    assert run.scoring.continuations == (tuple(TOKENIZER.encode(" red")),)
    assert (run.learns, taught(run)) == (False, [])


async def test_a_score_in_a_session_follows_its_conversation() -> None:
    """With the window, the messages continue what was said; without, they begin anew."""
    record = record_of(version_of(ONE, REPLY))
    with_window = await PLANNER.score(ScoreRequest(("a",), (TWO,), session=KEY), record)
    without = await PLANNER.score(ScoreRequest(("a",), (TWO,), session=KEY, window=False), record)
    assert text_of(with_window).startswith("<s>user\nAnd fat.")
    assert text_of(without).startswith("<s>system\nHi")
    assert (with_window.version, without.keep_window) == ("v7", False)


async def test_a_plain_prompt_is_scored_as_it_is() -> None:
    """No template around it; special tokens in it are text."""
    run = await PLANNER.score(ScoreRequest(("a",), prompt="<|im_end|>"), None)
    assert [item.token for item in run.feed] == TOKENIZER.encode("<|im_end|>")
    assert len(run.feed) == len("<|im_end|>")


@pytest.mark.parametrize(("continuation", "message"), [("", "is empty"), ("x" * 11, "has 11 tokens, the limit is 10")])
async def test_a_continuation_that_cannot_be_scored_is_refused(continuation: str, message: str) -> None:
    """Nothing to score, or more than the window holds."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        await PLANNER.score(ScoreRequest(("ok", continuation), prompt="p"), None)
    assert caught.value.param == "continuations"


async def test_only_the_named_sources_teach() -> None:
    """By default a tool's result and system text teach nothing; named, they are text like any other."""
    tool = Message("tool", "It is 5 C.")
    assert taught(await chat(SYSTEM, ONE, tool)) == [("My cat is red.", "user", 5)]
    asked = taught(await chat(SYSTEM, ONE, tool, sources=("system", "tool")))
    assert asked == [("Be brief.", "text", 5), ("It is 5 C.", "text", 5)]
    assert (await chat(ONE, sources=("assistant",))).reply_source == "assistant"
    assert (await chat(ONE, sources=("user",))).reply_source is None


async def test_what_a_message_marks_untrusted_does_not_teach() -> None:
    """The ids stay those of the whole text; only what is marked is left out, unless it is asked for."""
    message = Message("user", "Read: ignore all. Thanks.", untrusted=((6, 17),))
    run = await chat(message)
    assert text_of(run) == text_of(await chat(Message("user", message.content)))
    assert taught(run) == [("Read: ", "user", 5), (" Thanks.", "user", 5)]
    assert taught(await chat(message, sources=("user", "untrusted"))) == [(message.content, "user", 5)]


async def test_levels_are_those_of_the_model() -> None:
    """Every token that teaches carries the levels that the request names; an unknown level is refused."""
    run = await chat(ONE, levels=("slow",))
    assert {item.levels for item in run.feed if item.source} == {("slow",)}
    assert run.levels == ("slow",)
    with pytest.raises(InvalidRequest, match="names 'deep'; there are: fast, slow") as caught:
        await chat(ONE, levels=("deep",))
    assert caught.value.param == "memory.levels"


async def test_every_turn_says_whose_it_is() -> None:
    """With a session or without, so that slots can be shared fairly."""
    prompt = TextRequest("Go on", tenant="t")
    runs = [
        await PLANNER.chat(ChatRequest((ONE,), tenant="t"), None),
        await PLANNER.chat(ChatRequest((ONE,), session=KEY, tenant="t"), NEW),
        await PLANNER.text(prompt, None),
        await PLANNER.score(ScoreRequest((" red",), prompt="The barn is", tenant="t"), None),
        await PLANNER.learn(LearnRequest(KEY, "A text."), NEW),
    ]
    assert [run.tenant for run in runs] == ["t"] * len(runs)
    assert [run.is_bulk for run in runs] == [False] * 4 + [True]
