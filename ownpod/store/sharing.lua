-- Devices that go from one managed worker to another. Each command is one atomic step. The locals of managed.lua, with its
-- constants, are in front, so ARGV[2] is the worker's id: the wanted one. managed.py adds WORKER (keys.py).
--
-- NEXT                      hash    "<host>/<device>#<slot>" -> the wanted worker that gets the slot. Void once that worker
--                                   is not wanted any more
-- ENDPOINT<ep>:swaps        hash    endpoint -> how often a worker of this endpoint has given way to one of that endpoint

-- Whether a worker has a job, or its endpoint has one that the worker could run.
local function works(victim, endpoint)
  local shared = redis.call('HEXISTS', MANAGED .. ':' .. victim, 'role') == 0
  if shared and redis.call('ZCARD', ENDPOINT .. endpoint .. ':queued') > redis.call('ZCARD', ENDPOINT .. endpoint .. ':pinned') then
    return true
  end
  for _, busy in ipairs(redis.call('HVALS', ENDPOINT .. endpoint .. ':running')) do
    if busy == victim then
      return true
    end
  end
  local own, queues = '.' .. victim, redis.call('HGETALL', ENDPOINT .. endpoint .. ':queues')
  for i = 1, #queues, 2 do
    if string.sub(queues[i], -#own) == own and queues[i + 1] ~= '0' then
      return true
    end
  end
  return (redis.call('HGET', WORKER .. victim, 'held') or '0') ~= '0'
end

-- Whether the worker may have a slot of a host: it is free, or will be once the victims and those that leave have gone.
local function may_have(host, slot, victims)
  local field, device = host .. '/' .. slot, host .. '/' .. (string.match(slot, '^(.*)#%d+$') or '')
  if is_reserved(device) or is_kept(field) then
    return false
  end
  local holder = redis.call('HGET', HELD, field)
  if not holder or victims[holder] then
    return true
  end
  local phase = redis.call('HGET', MANAGED .. ':' .. holder, 'phase')
  return (RANK[phase or ''] or 0) >= RANK.draining
end

local commands = {}

-- worker, host, number of victims, victim, busy (0|1), reason, victim, busy, reason, ..., slot, slot, ... -> 1: the victims get no
-- more jobs, and the worker gets the slots; 0: a victim is not ready or, unless `busy`, works; the worker is not wanted;
-- or a slot is another's. A slot is "<device>#<number>"
function commands.evict()
  local host, victims, order, slots = ARGV[3], {}, {}, {}
  local first = 5 + 3 * tonumber(ARGV[4])
  for i = 5, first - 1, 3 do
    order[#order + 1] = ARGV[i]
    victims[ARGV[i]] = {busy = ARGV[i + 1] == '1', reason = ARGV[i + 2]}
  end
  for i = first, #ARGV do
    slots[#slots + 1] = ARGV[i]
  end
  local phase, _, endpoint = known()
  if phase ~= 'wanted' or redis.call('HGET', record, 'gpu_count') ~= tostring(#slots)
    or redis.call('SISMEMBER', DRAINING_HOSTS, host) == 1 then
    return 0
  end
  local done = 0
  for _, victim in ipairs(order) do
    local of_victim = MANAGED .. ':' .. victim
    local state, at, of_endpoint = unpack(redis.call('HMGET', of_victim, 'phase', 'host', 'endpoint'))
    if state == 'draining' and redis.call('HGET', of_victim, 'gives_way') == worker then
      done = done + 1
    elseif state ~= 'ready' or at ~= host or of_endpoint == endpoint
      or not victims[victim].busy and works(victim, of_endpoint) then
      return 0
    end
  end
  if done == #order then
    return 1
  end
  for _, slot in ipairs(slots) do
    if not may_have(host, slot, victims) then
      return 0
    end
  end
  let_go()
  for _, slot in ipairs(slots) do
    redis.call('HSET', NEXT, host .. '/' .. slot, worker)
  end
  local beneficiary = worker
  for _, victim in ipairs(order) do
    worker, record = victim, MANAGED .. ':' .. victim
    redis.call('HSET', record, 'phase', 'draining', 'reason', victims[victim].reason, 'gives_way', beneficiary)
    if redis.call('HEXISTS', record, 'role') == 1 then
      redis.call('HSETNX', record, 'ending', 'evicted')
    end
    redis.call('HINCRBY', ENDPOINT .. redis.call('HGET', record, 'endpoint') .. ':swaps', endpoint, 1)
    close(victims[victim].reason)
    notify('draining')
  end
  return 1
end

-- worker -> 1: no slot is kept for it any more
function commands.unkeep()
  if let_go() > 0 then
    notify('gone')
  end
  return 1
end

-- worker, host, whether the host refuses to start it (0|1) -> 1: that is recorded; 0: an agent has taken it
function commands.refused()
  local phase, _, endpoint = known()
  if phase ~= 'wanted' then
    return 0
  end
  -- The next worker of the release begins with this: no other one gives way to it before the host has checked it.
  local key = ENDPOINT .. endpoint .. ':refusing'
  if ARGV[4] == '1' then
    redis.call('HSET', key, ARGV[3], redis.call('HGET', record, 'release'))
    redis.call('PEXPIRE', key, KEPT_MS)
  else
    redis.call('HDEL', key, ARGV[3])
  end
  local hosts, kept = cjson.decode(redis.call('HGET', record, 'refused_by') or '[]'), {}
  for _, host in ipairs(hosts) do
    if host ~= ARGV[3] then
      kept[#kept + 1] = host
    end
  end
  if ARGV[4] == '1' then
    kept[#kept + 1] = ARGV[3]
  end
  redis.call('HSET', record, 'refused_by', #kept > 0 and cjson.encode(kept) or '[]')
  return 1
end
