"""Faults of the commit protocol in the stores."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

_SCRIPTS = "memory_store/hope_memory/redis_scripts.py"
_COMMITS = "memory_store/hope_memory/redis_commits.py"
_HISTORY = "memory_store/hope_memory/redis_history.py"
_CLIENT = "memory_store/hope_memory/redis_client.py"
_SESSIONS = "memory_store/hope_memory/redis_sessions.py"
_DURABILITY = "memory_store/hope_memory/redis_durability.py"
_SQLITE = "memory_store/hope_memory/sqlite_history.py"

_CONTRACT = "tests/memory_store/test_store_contract.py"
_VERSIONS = "tests/memory_store/test_history_contract.py"
_LINEAGE = "tests/memory_store/test_lineage_contract.py"
_REQUESTS = "tests/memory_store/test_learned_requests.py"
_REDIS = "tests/memory_store/test_redis_commits.py"
_REDIS_FAULTS = "tests/memory_store/test_redis_faults.py"
_REDIS_LOSS = "tests/memory_store/test_redis_loss.py"
_LATE = "tests/chaos/test_late_requests.py"

COMMIT_MUTANTS = (
    Mutant(
        "no compare-and-swap",
        "two servers that write one session at once both win, and one turn is lost",
        (Edit(_SCRIPTS, "if tip ~= ARGV[3] then return refuse('conflict', tip) end", ""),),
        (_REDIS, _CONTRACT, _LINEAGE),
    ),
    Mutant(
        "no compare-and-swap, SQLite",
        "a stale writer overwrites the head",
        (Edit(_SQLITE, "    if not is_expected:\n", "    if False:\n"),),
        (_CONTRACT,),
    ),
    Mutant(
        "integer versions",
        "the parent is compared by its number, so a stale copy of an equally long history wins",
        (
            Edit(
                _SCRIPTS,
                "if tip ~= ARGV[3] then",
                "if tonumber(words(get('f:' .. tip) or '- - 0')[3]) + 1 ~= tonumber(ARGV[8]) then",
            ),
            Edit(_COMMITS, "            if not is_expected:\n", "            if False:\n"),
        ),
        (_CONTRACT, _LINEAGE, _REDIS),
    ),
    Mutant(
        "no request id check",
        "a request that is sent again is learned again",
        (
            Edit(_SCRIPTS, "  if answered then return refuse('replay', answered) end\n", ""),
            Edit(
                _COMMITS,
                "            if (replay := _replay(member, view, wish)) is not None:\n",
                "            if False:\n",
            ),
            Edit(
                _COMMITS, "        if wish.place and wish.place in (place", "        if False and wish.place in (place"
            ),
        ),
        (_CONTRACT, _LINEAGE, _REDIS),
    ),
    Mutant(
        "request check outside the flip",
        "a request that two servers are sent at once is learned twice",
        (Edit(_SCRIPTS, "  if answered then return refuse('replay', answered) end\n", ""),),
        (_REDIS, _CONTRACT, _LINEAGE),
    ),
    Mutant(
        "another body, same request id",
        "an answer to another question is given",
        (Edit(_COMMITS, "    if answered.digest != wish.request.digest:\n", "    if False:\n"),),
        (_LINEAGE, _REDIS),
    ),
    Mutant(
        "flip before staging",
        "the head names levels that are not there yet",
        (
            Edit(
                _HISTORY,
                "        if changed is not None:\n            await stage(redis, member.key, changed)\n        status",
                "        status",
            ),
            Edit(
                _HISTORY,
                "            break\n    return status.decode()",
                "            break\n    await stage(redis, member.key, changed)\n    return status.decode()",
            ),
            Edit(
                _SCRIPTS,
                "  if redis.call('HEXISTS', key, name) == 0 then return {'incomplete'} end\nend\nlocal requests",
                "end\nlocal requests",
            ),
        ),
        (_REDIS, _REDIS_FAULTS),
    ),
    Mutant(
        "torn write",
        "the head moves although pieces of its levels are missing",
        (
            Edit(
                _SCRIPTS,
                "  if redis.call('HEXISTS', key, name) == 0 then return {'incomplete'} end\nend\nlocal requests",
                "end\nlocal requests",
            ),
        ),
        (_REDIS, _REDIS_FAULTS),
    ),
    Mutant(
        "repeated flip is not recognised",
        "a commit whose reply was lost is reported as a conflict with itself",
        (Edit(_SCRIPTS, "if holds(kept, version) then return {'done'} end\n", ""),),
        (_REDIS, _REDIS_FAULTS),
    ),
    Mutant(
        "implicit resurrection",
        "a writer that knew a deleted session brings it back",
        (
            Edit(
                _COMMITS,
                "        except SessionMissing:\n            if wish.parent is not None:\n                raise\n",
                "        except SessionMissing:\n            pass\n",
            ),
            Edit(_COMMITS, "            if not is_expected:\n", "            if not is_expected and is_there:\n"),
        ),
        (_CONTRACT, _REDIS),
    ),
    Mutant(
        "no tombstone",
        "pieces that arrive after a delete stay for ever",
        (
            Edit(
                _SCRIPTS,
                "if is_empty or had_name then redis.call('HSET', key, 'v', '1', 'tomb', birth) end\n",
                "",
            ),
        ),
        (_REDIS,),
    ),
    Mutant(
        "unchanged levels of another version",
        "a level that did not change is read from where it never was",
        (
            Edit(
                _COMMITS,
                "        return {name: parent.levels[name] for name in wish.unchanged}",
                "        return {name: replace(parent.levels[name], origin=parent.version) for name in wish.unchanged}",
            ),
        ),
        (_CONTRACT, _REDIS),
    ),
    Mutant(
        "clean-up drops too much",
        "what older versions and forks still name is removed",
        (
            Edit(
                _SCRIPTS,
                "    if string.sub(name, 2, 2) ~= ':' or live[stem] then",
                "    if string.sub(name, 2, 2) ~= ':' or live[stem] and kind ~= 'l' then",
            ),
        ),
        (_CONTRACT, _VERSIONS, _REDIS),
    ),
    Mutant(
        "clean-up leaves crashed writers' pieces",
        "what a crashed writer staged fills the store for ever",
        (
            Edit(
                _SCRIPTS,
                "is_doomed = not has_owner or owner == birth or gone[stem] end",
                "is_doomed = not has_owner or gone[stem] end",
            ),
        ),
        (_REDIS,),
    ),
    Mutant(
        "late repetition is cleaned up after",
        "a repeated commit that arrives late takes away levels that later versions still name",
        (Edit(_SCRIPTS, " and not named[name] then", " then"),),
        (_LATE,),
    ),
    Mutant(
        "late creation of what was deleted",
        "the repetition of a creation that arrives late makes a session that nobody can read or make anew",
        (Edit(_SCRIPTS, "if get('tomb') == birth then return {'is', ''} end\n", ""),),
        (_LATE,),
    ),
    Mutant(
        "a rival's creation taken for a loss",
        "two servers that make a session at once tell one caller that its memory was evicted",
        (
            Edit(
                _SESSIONS,
                "            if look.view is not None:\n                raise SessionExists(session.name)\n",
                "",
            ),
        ),
        (_REDIS_LOSS,),
    ),
    Mutant(
        "request list not bounded",
        "the list of requests grows with every turn",
        (
            Edit(
                _SCRIPTS,
                "  if tonumber(string.match(entry, '^%d+')) > number - tonumber(ARGV[12]) then",
                "  if true then",
            ),
        ),
        (_REQUESTS,),
    ),
    Mutant(
        "requests not in the manifest",
        "which requests were learned cannot be told from the authenticated record",
        (
            Edit(
                _HISTORY,
                "    lineage = ((made.version, request), *earlier)",
                '    lineage = ((made.version, ""), *earlier)',
            ),
        ),
        (_REQUESTS,),
    ),
    Mutant(
        "lineage starts anew",
        "a store that went back cannot be told from one that went on",
        (
            Edit(
                _HISTORY,
                "    lineage = ((made.version, request), *earlier)[:KEEP_REQUESTS]",
                "    lineage = ((made.version, request),)",
            ),
        ),
        (_LINEAGE,),
    ),
    Mutant(
        "retries by redis-py",
        "a Redis that hangs is waited for much longer than the deadline",
        (
            Edit(_CLIENT, "retry=Retry(NoBackoff(), 0)", "retry=Retry(NoBackoff(), 10)"),
            Edit(
                _CLIENT,
                "async with asyncio.timeout(min(patience.command_seconds, left)):",
                "async with asyncio.timeout(None):",
            ),
            Edit(_CLIENT, "socket_timeout=None", "socket_timeout=5"),
        ),
        (_REDIS_FAULTS,),
    ),
    Mutant(
        "WAIT ignored",
        "a commit is called replicated although no replica has it",
        (
            Edit(
                _DURABILITY,
                "            is_met = isinstance(found, int) and found >= wanted\n",
                "            is_met = True\n",
            ),
        ),
        (_LINEAGE, _REDIS_LOSS),
    ),
    Mutant(
        "delete leaves the key",
        "a deleted session can be read in every copy of the store",
        (
            Edit(
                _SESSIONS,
                "or record.is_live\n            await self._vault.destroy(place, record.keys.birth)\n",
                "or record.is_live\n",
            ),
        ),
        ("tests/memory_store/test_canary.py", _REDIS_LOSS),
    ),
)
