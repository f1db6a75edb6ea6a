"""Faults of a turn's way from the request to the last event."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

_ENGINE = "hope_server/engine/engine.py"
_COMMITS = "hope_server/engine/commits.py"
_REPLAY = "hope_server/engine/replay.py"
_WITNESS = "hope_server/engine/witness.py"
_SSE = "hope_server/api/sse.py"

_TRANSACTION = "tests/api/test_turn_transaction.py"
_RETRIED = "tests/e2e/test_retried_turn_learns_once.py"
_WRITERS = "tests/e2e/test_two_writers.py"
_WENT_BACK = "tests/e2e/test_store_went_back.py"
_DURABILITY = "tests/e2e/test_durability.py"

TURN_MUTANTS = (
    Mutant(
        "last event before the commit",
        "a turn is acknowledged that is then lost",
        (Edit(_ENGINE, '        if asked == "async":\n', '        if asked in ("async", "commit"):\n'),),
        (_TRANSACTION,),
    ),
    Mutant(
        "commit ends with the connection",
        "a client that hangs up stops a commit that has begun",
        (Edit(_ENGINE, "        kept = await asyncio.shield(commit)\n", "        kept = await commit\n"),),
        (_TRANSACTION,),
    ),
    Mutant(
        "failed turn ends as if whole",
        "a client takes an answer for complete whose turn failed",
        (
            Edit(
                _SSE,
                "                yield self._last_words(exc)\n                return\n",
                "                yield _DONE\n                return\n",
            ),
        ),
        ("tests/api/test_stream.py",),
    ),
    Mutant(
        "answers are not looked for",
        "a request that is sent again is computed again, and a silent repetition is learned again",
        (Edit(_REPLAY, "        found = await self._search(visit, ask)\n", "        found = None\n"),),
        (_RETRIED,),
    ),
    Mutant(
        "silent repetitions are new turns",
        "OpenAI's client, which sends no key, has a message learned up to three times",
        (
            Edit(
                _REPLAY,
                "        last = await self._last(visit)\n",
                "        last = None\n        ask = Ask(Attempt(), ask.digest)\n",
            ),
        ),
        (_RETRIED,),
    ),
    Mutant(
        "If-Match ignored",
        "a caller's expectation of the memory's version is not checked",
        (
            Edit(
                _WITNESS,
                "        if if_match is not None and if_match not in (ANY_VERSION, record.tip):\n",
                "        if False:\n",
            ),
        ),
        (_WRITERS,),
    ),
    Mutant(
        "store's roll-back not noticed",
        "memory that the store lost is lost silently",
        (Edit(_WITNESS, "            if missing is not None:\n", "            if False:\n"),),
        (_WENT_BACK,),
    ),
    Mutant(
        "lost hot state stays",
        "after a commit that failed a server goes on from a state that the store does not have",
        (
            Edit(
                _COMMITS,
                "            self._release(run, None if kept is None or kept.info.is_replay else kept.info.version)\n",
                "            self._release(run, draft.tip if kept is None else kept.info.version)\n",
            ),
        ),
        (
            _WRITERS,
            _RETRIED,
        ),
    ),
    Mutant(
        "queued turns are not drained",
        "a graceful stop loses turns of durability async",
        (
            Edit(
                _COMMITS,
                "        while self._writing:\n"
                "            await asyncio.gather(*self._writing, return_exceptions=True)\n"
                "        await asyncio.gather(*(self._settle_last",
                "        return\n        await asyncio.gather(*(self._settle_last",
            ),
        ),
        (_DURABILITY,),
    ),
    Mutant(
        "durability not told",
        "a receipt says committed although nothing was stored",
        (Edit(_REPLAY, "        if not kept.is_met and not self._is_lenient:\n", "        if False:\n"),),
        (_DURABILITY,),
    ),
)
