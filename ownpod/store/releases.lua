-- Releases of endpoints: each command is one atomic step. releases.py puts the constants in front: ENDPOINT, NEXT,
-- LOOKS, NOTICES (keys.py), KEPT, LOOK_MS. ARGV[2] is the endpoint's id.
--
-- ENDPOINT<ep>:release      hash    number: that of the last release; configured: name of the configured spec for which it
--                                   was made (ManagedSpec.release); current, current_id: the release of new workers;
--                                   next: the release whose image the hosts get now; looked, looked_ms: what the last
--                                   check of the image's tag has found, and when
-- ENDPOINT<ep>:release:<n>  hash    id, base (the spec's own name), spec (JSON), why, made_ms; ready_ms: when a worker
--                                   of it was first ready; ended: why it was given up. The last KEPT, and the current one
-- ENDPOINT<ep>:release:<n>:hosts    hash    host -> JSON of HostImage (rules/releases.py)
-- ENDPOINT<ep>:digests      hash    release id -> the digest of its image, from the first host that resolved the tag
-- NEXT                      hash    endpoint -> number of its next release, for the agents
-- LOOKS                     hash    endpoint -> ms when a check of its image's tag was asked for, until it is made
-- NOTICES                   pub/sub "release <endpoint>"

local endpoint = ARGV[2]
local main = ENDPOINT .. endpoint .. ':release'
local digests = ENDPOINT .. endpoint .. ':digests'

local function of(number)
  return main .. ':' .. number
end

local function notify()
  redis.call('PUBLISH', NOTICES, 'release ' .. endpoint)
end

-- Ids of the releases that are kept, by number.
local function ids()
  local found, last = {}, tonumber(redis.call('HGET', main, 'number') or '0')
  for number = math.max(1, last - KEPT), last do
    found[number] = redis.call('HGET', of(number), 'id') or nil
  end
  return found
end

local function has(found, id)
  for _, known in pairs(found) do
    if known == id then
      return true
    end
  end
  return false
end

-- Removes releases beyond the last KEPT, with digests that none of the others has.
local function trim(last)
  local oldest, current = last - KEPT, redis.call('HGET', main, 'current')
  for number = math.max(1, oldest - 1), oldest do
    if tostring(number) ~= current then
      local id = redis.call('HGET', of(number), 'id')
      redis.call('DEL', of(number), of(number) .. ':hosts')
      if id and not has(ids(), id) then
        redis.call('HDEL', digests, id)
      end
    end
  end
end

-- The next release. id: '': a new one. Returns its number.
local function make(id, base, spec, why, digest)
  local known = ids()
  local number = redis.call('HINCRBY', main, 'number', 1)
  if id == '' then
    -- The spec's own name, so that workers from before there were releases count; but what its tag meant may differ.
    id = has(known, base) and string.sub(redis.sha1hex(base .. ' ' .. number .. ' ' .. now), 1, 12) or base
  end
  redis.call('DEL', of(number), of(number) .. ':hosts')
  redis.call('HSET', of(number), 'id', id, 'base', base, 'spec', spec, 'why', why, 'made_ms', now)
  if digest ~= '' then
    redis.call('HSETNX', digests, id, digest)
  end
  redis.call('HSET', main, 'next', number)
  redis.call('HSET', NEXT, endpoint, number)
  trim(number)
  notify()
  return number
end

-- Number and base of the last release.
local function latest()
  local number = redis.call('HGET', main, 'number')
  return number, number and redis.call('HGET', of(number), 'base')
end

local commands = {}

-- endpoint, name of the configured spec, its JSON, why -> number of the release that was made for it; 0: it has one
function commands.note()
  if redis.call('HGET', main, 'configured') == ARGV[3] then
    return 0
  end
  local _, base = latest()
  redis.call('HSET', main, 'configured', ARGV[3])
  return base == ARGV[3] and 0 or make('', ARGV[3], ARGV[4], ARGV[5], '')
end

-- endpoint, number -> 1: new workers are of this release
function commands.begin()
  local current, next = unpack(redis.call('HMGET', main, 'current', 'next'))
  if next ~= ARGV[3] then
    return current == ARGV[3] and 1 or 0
  end
  redis.call('HSET', main, 'current', next, 'current_id', redis.call('HGET', of(next), 'id') or '')
  redis.call('HDEL', main, 'next')
  redis.call('HDEL', NEXT, endpoint)
  notify()
  return 1
end

-- endpoint, number: a worker of the release is ready
function commands.came_up()
  if redis.call('EXISTS', of(ARGV[3])) == 1 then
    redis.call('HSETNX', of(ARGV[3]), 'ready_ms', now)
  end
  return 1
end

-- endpoint, number of the last release, number of the one to go back to, why, fields of an entry of AUDIT ... -> number of
-- the release that goes back; 0: there is another last release, or no such release
function commands.roll_back()
  local number = latest()
  local id, base, spec = unpack(redis.call('HMGET', of(ARGV[4]), 'id', 'base', 'spec'))
  if number ~= ARGV[3] or not spec then
    return 0
  end
  redis.call('HSET', of(number), 'ended', ARGV[5])
  -- It is not given up any more.
  redis.call('HDEL', of(ARGV[4]), 'ended')
  if ARGV[6] then
    redis.call('XADD', AUDIT, 'MAXLEN', '~', MOST_AUDITS, '*', unpack(ARGV, 6))
  end
  return make(id, base, spec, 'rollback to ' .. ARGV[4], '')
end

-- endpoint, release id, digest -> the digest of the release's image: the first that a host has found
function commands.pin()
  redis.call('HSETNX', digests, ARGV[3], ARGV[4])
  return redis.call('HGET', digests, ARGV[3])
end

-- endpoint, number, host, JSON of HostImage, whether it waits no more (0|1)
function commands.publish_image()
  if redis.call('EXISTS', of(ARGV[3])) == 1 then
    redis.call('HSET', of(ARGV[3]) .. ':hosts', ARGV[4], ARGV[5])
    if ARGV[6] == '1' then
      notify()
    end
  end
  return 1
end

-- endpoint -> ms of the check that is asked for
function commands.look()
  redis.call('HSET', LOOKS, endpoint, string.format('%.0f', now))
  redis.call('HSET', main, 'looked', '')
  notify()
  return string.format('%.0f', now)
end

-- endpoint, ms of the check, digest or '', why it was not found -> number of the release that was made; 0: none
function commands.looked()
  if redis.call('HGET', LOOKS, endpoint) ~= ARGV[3] then
    return 0
  end
  if now - ARGV[3] > LOOK_MS then
    -- Asked for when there was no host that could answer.
    redis.call('HDEL', LOOKS, endpoint)
    return 0
  end
  if ARGV[4] == '' then
    -- Another host may find it.
    redis.call('HSET', main, 'looked', ARGV[5], 'looked_ms', ARGV[3])
    return 0
  end
  redis.call('HDEL', LOOKS, endpoint)
  local number = latest()
  local id, base, spec = unpack(redis.call('HMGET', of(number or ''), 'id', 'base', 'spec'))
  local found = 'the same image'
  if not spec then
    found = 'no release'
  else
    redis.call('HSETNX', digests, id, ARGV[4])
    if redis.call('HGET', digests, id) ~= ARGV[4] then
      number = make('', base, spec, ARGV[6], ARGV[4])
      found = 'release ' .. number
    end
  end
  redis.call('HSET', main, 'looked', found, 'looked_ms', ARGV[3])
  return found == 'the same image' and 0 or tonumber(number or '0')
end
