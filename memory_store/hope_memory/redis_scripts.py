"""What the Redis store does in one step on the server: small Lua scripts over one hash.

`redis_layout` describes the fields. Every script may run twice with the same arguments, so a caller whose connection
broke asks again. A script first checks and then writes, and its first write is one that Redis refuses when memory is
full, so a refused script has changed nothing; only what removes things works also when memory is full.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script of one key."""

    text: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        # SHA-1 is how Redis names scripts; nothing rests on it.
        object.__setattr__(self, "sha", hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest())


_BASICS = """
local key = KEYS[1]
local function get(name) return redis.call('HGET', key, name) or nil end
local function words(text)
  local list = {}
  for word in string.gmatch(text or '', '%S+') do list[#list + 1] = word end
  return list
end
local function holds(list, wanted)
  for _, word in ipairs(list) do if word == wanted then return true end end
  return false
end
local function pieces(facts, into)
  for index, word in ipairs(words(facts)) do
    if index > 5 then
      local stem, count = string.match(word, '^(.*)%*(%d+)$')
      for n = 0, (tonumber(count) or 0) - 1 do into['l:' .. stem .. '#' .. n] = true end
    end
  end
  return into
end
local function stems(facts, into)
  for stem in string.gmatch(facts or '', ' ([^ ]+)%*%d+') do into[stem] = true end
end
local function drop(names)
  for at = 1, #names, 500 do redis.call('HDEL', key, unpack(names, at, math.min(at + 499, #names))) end
end
-- A hash without a layout is nobody's, left by a writer whose session expired, or another program's.
local function check_layout()
  local layout = get('v')
  if layout == '1' then return 'ours' end
  if layout then return 'foreign' end
  for _, name in ipairs(redis.call('HKEYS', key)) do
    if string.sub(name, 1, 2) ~= 'l:' then return 'foreign' end
  end
  return 'none'
end
local function set_life(ttl)
  if tonumber(ttl) > 0 then redis.call('PEXPIRE', key, ttl) else redis.call('PERSIST', key) end
end
"""

_SWEEP = """
-- Remove what no kept version of any member names. What a living member has staged stays, unless it is `birth`, whose
-- other writers have lost by now, or `gone` names it.
local function sweep(birth, gone)
  local now, all, members = tonumber(redis.call('TIME')[1]), redis.call('HKEYS', key), {}
  for _, name in ipairs(all) do
    if string.sub(name, 1, 2) == 't:' then members[string.sub(name, 3)] = true end
  end
  for _, name in ipairs(all) do
    if string.sub(name, 1, 2) == 'p:' and now - tonumber(get(name)) > 60 then
      members[string.sub(name, 3)] = nil
      redis.call('HDEL', key, 't:' .. string.sub(name, 3))
    end
  end
  local live = {}
  for member in pairs(members) do
    for _, version in ipairs(words(get('c:' .. member))) do
      for _, kind in ipairs({'m:', 'i:', 'f:'}) do live[kind .. version] = true end
      stems(get('f:' .. version), live)
    end
    for _, entry in ipairs(words(get('q:' .. member))) do
      live['a:' .. member .. ':' .. string.match(entry, ':(.*)$')] = true
    end
  end
  local doomed, by_version, by_owner = {}, {m = true, i = true, f = true}, {n = 1, h = 1, c = 1, q = 1, k = 1, p = 1}
  for _, name in ipairs(all) do
    local kind, owner = string.sub(name, 1, 1), string.sub(name, 3, 34)
    local has_owner = members[owner] ~= nil
    local is_doomed = false
    local stem = kind == 'l' and string.match(name, '^l:(.*)#') or name
    if string.sub(name, 2, 2) ~= ':' or live[stem] then is_doomed = false
    elseif by_version[kind] or kind == 'a' then is_doomed = true
    elseif by_owner[kind] then is_doomed = not has_owner
    elseif kind == 'l' then is_doomed = not has_owner or owner == birth or gone[stem] end
    if is_doomed then doomed[#doomed + 1] = name end
  end
  drop(doomed)
  return next(members) ~= nil
end
"""

# birth or "" (whoever has the key's name), version or "" (the head), request hash or ""
LOOK = Script(
    _BASICS
    + """
local layout = check_layout()
if layout ~= 'ours' then return {layout} end
local birth = ARGV[1]
if birth == '' then
  birth = get('is')
  if not birth then return {'none', get('tomb') or ''} end
  local home = get('in')
  if home then return {'in', birth, home} end
end
local times = get('t:' .. birth)
if not times then return {'gone', birth} end
local head, kept = get('h:' .. birth) or '', get('c:' .. birth) or ''
local version, found = ARGV[2], {false, false, false}
if version == '' then version = head end
if holds(words(kept), version) then
  found = redis.call('HMGET', key, 'm:' .. version, 'f:' .. version, 'i:' .. version)
end
local rest = redis.call('HMGET', key, 'n:' .. birth, 'f:' .. head, 'q:' .. birth, 'k:' .. birth,
  'a:' .. birth .. ':' .. ARGV[3])
return {'at', birth, times, head, kept, found[1], found[2], found[3], rest[1], rest[2], rest[3], rest[4], rest[5]}
"""
)

# birth, time, sealed name, time to live in ms or 0, birth to replace (it has the name and nothing else) or ""
CREATE = Script(
    _BASICS
    + """
local layout = check_layout()
if layout == 'foreign' then return {layout} end
local birth, times, is = ARGV[1], ARGV[2] .. ' ' .. ARGV[2], get('is')
-- A late repetition must not bring back what was deleted meanwhile.
if get('tomb') == birth then return {'is', ''} end
if is and is ~= ARGV[5] then
  return {(is == birth and get('t:' .. birth) == times) and 'made' or 'is', is}
end
redis.call('HSET', key, 'v', '1', 'is', birth, 't:' .. birth, times, 'n:' .. birth, ARGV[3])
redis.call('HDEL', key, 'in', 'tomb')
set_life(ARGV[4])
return {'made', birth}
"""
)

# birth, version, expected tip, manifest, facts, summary, time, number, request hash or "", its record,
# versions to keep, requests to keep, time to live in ms or 0, versions that stay however old they are
FLIP = Script(
    _BASICS
    + _SWEEP
    + """
local birth, version, facts, request = ARGV[1], ARGV[2], ARGV[5], ARGV[9]
-- What this commit staged is of no use then, unless it is the late repetition of one that happened long ago: levels
-- that it wrote may still be named by later versions.
local function refuse(...)
  local staged, named = {}, {}
  for _, name in ipairs(redis.call('HKEYS', key)) do
    if string.sub(name, 1, 2) == 'f:' then pieces(get(name), named) end
  end
  for name in pairs(pieces(facts, {})) do
    if string.find(name, '@' .. version .. '#', 1, true) and not named[name] then staged[#staged + 1] = name end
  end
  drop(staged)
  return {...}
end
local times, kept = get('t:' .. birth), words(get('c:' .. birth))
if not times then return refuse('missing') end
if holds(kept, version) then return {'done'} end
if request ~= '' then
  local answered = get('a:' .. birth .. ':' .. request)
  if answered then return refuse('replay', answered) end
end
local tip = get('h:' .. birth) or birth
if tip ~= ARGV[3] then return refuse('conflict', tip) end
for name in pairs(pieces(facts, {})) do
  if redis.call('HEXISTS', key, name) == 0 then return {'incomplete'} end
end
local requests, number = {}, tonumber(ARGV[8])
for _, entry in ipairs(words(get('q:' .. birth))) do
  if tonumber(string.match(entry, '^%d+')) > number - tonumber(ARGV[12]) then requests[#requests + 1] = entry end
end
local gone, pins, staying = {}, words(ARGV[14]), {version}
for place, older in ipairs(kept) do
  if place < tonumber(ARGV[11]) or holds(pins, older) then staying[#staying + 1] = older
  else stems(get('f:' .. older), gone) end
end
kept = staying
local changes = {'h:' .. birth, version, 'm:' .. version, ARGV[4], 'f:' .. version, facts, 'i:' .. version, ARGV[6],
  'c:' .. birth, table.concat(kept, ' '), 't:' .. birth, words(times)[1] .. ' ' .. ARGV[7]}
if request ~= '' then
  requests[#requests + 1] = ARGV[8] .. ':' .. request
  changes[#changes + 1] = 'a:' .. birth .. ':' .. request
  changes[#changes + 1] = ARGV[10]
end
changes[#changes + 1] = 'q:' .. birth
changes[#changes + 1] = table.concat(requests, ' ')
redis.call('HSET', key, unpack(changes))
sweep(birth, gone)
set_life(ARGV[13])
return {'done'}
"""
)

# birth, milliseconds that a tombstone stays; on the family's hash and, for a fork, on that of its own name
DELETE = Script(
    _BASICS
    + _SWEEP
    + """
if check_layout() ~= 'ours' then return 0 end
local birth, gone = ARGV[1], {}
for _, version in ipairs(words(get('c:' .. birth))) do stems(get('f:' .. version), gone) end
local removed, had_name = redis.call('HDEL', key, 't:' .. birth), get('is') == birth
if had_name then removed = removed + redis.call('HDEL', key, 'is', 'in') end
local has_members = sweep(birth, gone)
if removed == 0 then return 0 end
local is_empty = not has_members and not get('is')
if is_empty then redis.call('UNLINK', key) end
if is_empty or had_name then redis.call('HSET', key, 'v', '1', 'tomb', birth) end
if is_empty then redis.call('PEXPIRE', key, ARGV[2]) end
return removed
"""
)

# source's birth, its version or "", new birth, time, sealed name, version or "", manifest, facts, summary
FORK = Script(
    _BASICS
    + """
local source, birth, version = ARGV[1], ARGV[3], ARGV[6]
if not get('t:' .. source) then return {'missing'} end
if get('t:' .. birth) then return {'made'} end
if ARGV[2] ~= '' and not holds(words(get('c:' .. source)), ARGV[2]) then return {'version'} end
for name in pairs(pieces(ARGV[8], {})) do
  if redis.call('HEXISTS', key, name) == 0 then return {'incomplete'} end
end
local changes = {'t:' .. birth, ARGV[4] .. ' ' .. ARGV[4], 'n:' .. birth, ARGV[5], 'p:' .. birth,
  redis.call('TIME')[1]}
if version ~= '' then
  for _, change in ipairs({'h:' .. birth, version, 'c:' .. birth, version, 'm:' .. version, ARGV[7],
    'f:' .. version, ARGV[8], 'i:' .. version, ARGV[9]}) do changes[#changes + 1] = change end
end
redis.call('HSET', key, unpack(changes))
return {'made'}
"""
)

# birth, key of the family's hash, time to live in ms or 0, birth to replace or ""; on the hash of a fork's own name
POINT = Script(
    _BASICS
    + """
local layout, is = check_layout(), get('is')
if layout == 'foreign' then return {layout} end
if get('tomb') == ARGV[1] then return {'is', ''} end
if is and is ~= ARGV[1] and is ~= ARGV[4] then return {'is', is} end
redis.call('HSET', key, 'v', '1', 'is', ARGV[1], 'in', ARGV[2])
if ARGV[2] == key then redis.call('HDEL', key, 'in') end
redis.call('HDEL', key, 'tomb')
set_life(ARGV[3])
return {'made'}
"""
)

# birth; a fork whose name is taken by now is a member for good, or, where that took too long, was swept away
CONFIRM = Script(
    _BASICS
    + """
redis.call('HDEL', key, 'p:' .. ARGV[1])
return redis.call('HEXISTS', key, 't:' .. ARGV[1])
"""
)

# birth, version
ACKNOWLEDGE = Script(
    _BASICS
    + """
if holds(words(get('c:' .. ARGV[1])), ARGV[2]) then redis.call('HSET', key, 'k:' .. ARGV[1], ARGV[2]) end
return 1
"""
)

# A write that changes nothing, so that what follows on its connection waits for all that was written before.
TOUCH = Script(
    """
if redis.call('HGET', KEYS[1], 'v') then redis.call('HSET', KEYS[1], 'v', '1') end
return 1
"""
)
