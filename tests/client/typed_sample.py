"""A program that uses every verb of both clients: nothing runs it, type checkers read it (see test_types)."""

from __future__ import annotations

from pathlib import Path

from hope_client import (
    AsyncHopeClient,
    AsyncSession,
    Health,
    HopeClient,
    HopeError,
    LearnProgress,
    LearnResult,
    MemoryEvicted,
    MemoryOptions,
    MemoryRolledBack,
    MemoryStatistics,
    Message,
    Model,
    RecallLift,
    Receipt,
    Reply,
    Score,
    Session,
    SessionInfo,
    Snapshot,
    Turn,
    Version,
)
from openai import OpenAI

READ: MemoryOptions = {"mode": "read", "window": False}
TALK: list[Message] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]


def show(progress: LearnProgress) -> None:
    """Print how far a learn call is."""
    print(f"{progress.part}/{progress.num_parts}: {progress.tokens_done} of {progress.tokens_total}, {progress.loss}")


def use_client(hope: HopeClient) -> Session:
    """Every verb of the client."""
    models: list[Model] = hope.models()
    health: Health = hope.health()
    names: list[str] = [info.id for info in hope.sessions(page_size=10)]
    print(models[0].id, health.is_ready, names, hope.base_url)
    session = hope.session("ada", ttl=3600, metadata={"who": "ada"})
    hope.session()
    hope.delete(hope.import_session(session.export(), "copy").id)
    return hope.get_session("ada")


def use_session(session: Session) -> None:
    """Every verb of a session."""
    reply: Reply = session.chat("Where?", temperature=0, max_tokens=20, top_p=0.5, stop=["\n"], seed=1, memory=READ)
    receipt: Receipt | None = session.chat(TALK, key="order 17", extra_body={"min_p": 0.1}).receipt
    print(reply.text.upper(), reply.tool_calls, receipt.not_learned if receipt is not None else None)
    with session.stream(TALK, tools=[{"type": "function", "function": {"name": "look"}}]) as stream:
        for text in stream:
            print(text.upper())
        print(stream.key, stream.reply.finish_reason, stream.receipt)
    results: list[LearnResult] = [
        session.learn("A fact.", passes=3, progress=show, key="fact"),
        session.learn(Path("book.txt")),
        session.learn(line for line in ("One.", "Two.")),
        session.consolidate(passes=1, progress=show),
    ]
    scores: list[Score] = session.score([" yes", " no"], messages=TALK, window=False)
    lift: RecallLift = session.recall_lift("Where?", " Here.")
    print(results[0].tokens_learned, scores[0].per_token, lift.lift)
    versions: list[Version] = session.versions()
    tagged: SessionInfo = session.snapshot("before", versions[0].version)
    snapshots: list[Snapshot] = session.snapshots()
    back: SessionInfo = session.rollback("before")
    print(tagged.tags, snapshots, back.version, session.version)
    session.delete_snapshot("before")
    forks: list[Session] = [session.fork("ada-2", tag="before"), session.fork(version=versions[0].version)]
    forks[0].delete()
    exported: bytes = session.export("ada.hope", version=versions[0].version)
    print(len(exported), session.info().expires)
    memory: MemoryStatistics = session.memory()
    turns: list[Turn] = session.turns()
    print(memory.levels["fast"].norm, turns[0].kind)
    print(session.freeze().frozen, session.unfreeze().frozen, session.reset(["fast"]).version)
    with session.frozen() as same:
        print(same.id)
    session.patch(frozen=False, ttl=0, metadata={})


def use_openai(hope: HopeClient, session: Session) -> str | None:
    """The stock client, in a session."""
    client = OpenAI(**hope.openai())
    answer = client.chat.completions.create(
        model=hope.models()[0].id,
        messages=[{"role": "user", "content": "Where?"}],
        **session.openai_kwargs(memory={"mode": "read"}),
    )
    return answer.choices[0].message.content


def recover(session: Session) -> str:
    """Errors by what a caller can do about them."""
    try:
        return session.chat("Hello").text
    except MemoryRolledBack as exc:
        return f"{session.info().version}: {exc.message}"
    except MemoryEvicted as exc:
        return exc.text
    except HopeError as exc:
        when = exc.retry_after_seconds if exc.is_retryable else None
        return f"{exc.code} {exc.status} {exc.request_id} {exc.param} {when} {exc.key}"


async def use_async_client(hope: AsyncHopeClient) -> AsyncSession:
    """Every verb of the asynchronous client."""
    models: list[Model] = await hope.models()
    health: Health = await hope.health()
    names: list[str] = [info.id async for info in hope.sessions(page_size=10)]
    print(models[0].id, health.is_ready, names, hope.base_url, hope.openai())
    session = await hope.session("ada", ttl=3600, metadata={"who": "ada"})
    copy = await hope.import_session(await session.export(), "copy")
    await hope.delete(copy.id)
    return await hope.get_session("ada")


async def use_async_session(session: AsyncSession) -> None:
    """Every verb of an asynchronous session."""
    reply: Reply = await session.chat("Where?", temperature=0, memory=READ)
    async with session.stream(TALK, max_tokens=20) as stream:
        async for text in stream:
            print(text.upper())
    print(reply.text, stream.key, stream.reply.text, stream.receipt)
    opened = await session.stream("And why?")
    await opened.close()
    results: list[LearnResult] = [
        await session.learn("A fact.", passes=3, progress=show, key="fact"),
        await session.learn(Path("book.txt")),
        await session.consolidate(),
    ]
    scores: list[Score] = await session.score([" yes"], prompt="Is it?")
    lift: RecallLift = await session.recall_lift(TALK, " Here.")
    versions: list[Version] = await session.versions()
    tagged: SessionInfo = await session.snapshot("before")
    snapshots: list[Snapshot] = await session.snapshots()
    back: SessionInfo = await session.rollback(versions[0].version)
    await session.delete_snapshot("before")
    fork: AsyncSession = await session.fork("ada-2", tag="before")
    await fork.delete()
    exported: bytes = await session.export("ada.hope")
    memory: MemoryStatistics = await session.memory()
    turns: list[Turn] = await session.turns()
    print(results, scores, lift, tagged, snapshots, back, len(exported), memory, turns, (await session.info()).turn)
    await session.freeze()
    await session.unfreeze()
    await session.reset(["fast"])
    async with session.frozen() as same:
        print(same.id, same.version, same.openai_kwargs(READ))
    await session.patch(frozen=False, ttl=0, metadata={})


async def run_async() -> None:
    """Both together."""
    async with AsyncHopeClient("http://127.0.0.1:8000", "sk-1", 60.0, max_retries=0, strict=True) as hope:
        await use_async_session(await use_async_client(hope))


def run() -> None:
    """The plain client."""
    with HopeClient("http://127.0.0.1:8000", "sk-1", 60.0, max_retries=0, strict=True) as hope:
        session = use_client(hope)
        use_session(session)
        print(use_openai(hope, session), recover(session))
