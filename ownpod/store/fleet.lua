-- Endpoints and workers of run time, and what the nodes publish about workers. Each command is one atomic step.
-- fleet.py puts the constants in front: ENDPOINTS, ADDED, PAUSED, WORKER, MANAGED_ENTRIES (see
-- keys.py).
--
-- ENDPOINTS              hash    endpoint id -> JSON, an entry of `endpoints` in workers.yaml without `workers`
-- ADDED                  hash    worker id -> JSON, an entry of `workers` in workers.yaml, and its `endpoint`
-- PAUSED                 hash    worker id -> why the worker takes no jobs
-- MANAGED_ENTRIES        hash    see ENTRIES in managed.lua
-- WORKER<worker>         hash    state, reason, held (lingering slots), node; expires when the node falls silent
-- WORKER<worker>:owner   string  the process that runs the worker; expires when the process does not renew it

local commands = {}

local function owner_key(worker)
  return WORKER .. worker .. ':owner'
end

local function publish(worker, ttl_ms, first)
  redis.call('HSET', WORKER .. worker, unpack(ARGV, first))
  redis.call('PEXPIRE', WORKER .. worker, ttl_ms)
end

-- endpoint id, JSON
function commands.put_endpoint()
  redis.call('HSET', ENDPOINTS, ARGV[2], ARGV[3])
end

-- endpoint id, ids of its added workers. In one step, so that a later endpoint of this id does not inherit them.
function commands.remove_endpoint()
  redis.call('HDEL', ENDPOINTS, ARGV[2])
  for i = 3, #ARGV do
    redis.call('HDEL', ADDED, ARGV[i])
    redis.call('HDEL', PAUSED, ARGV[i])
  end
end

-- worker id, JSON
function commands.put_worker()
  redis.call('HSET', ADDED, ARGV[2], ARGV[3])
end

-- worker id
function commands.remove_worker()
  redis.call('HDEL', ADDED, ARGV[2])
  redis.call('HDEL', PAUSED, ARGV[2])
end

-- worker id, reason
function commands.pause()
  redis.call('HSET', PAUSED, ARGV[2], ARGV[3])
end

-- worker id -> 1; 0: it is a managed worker that is to stop, so it stays paused
function commands.resume()
  local entry = redis.call('HGET', MANAGED_ENTRIES, ARGV[2])
  if entry and string.find(entry, '"draining":true', 1, true) then
    return 0
  end
  redis.call('HDEL', PAUSED, ARGV[2])
  return 1
end

-- worker id, ms until the status expires, fields of the status
function commands.publish_status()
  publish(ARGV[2], ARGV[3], 4)
end

-- worker id
function commands.remove_status()
  redis.call('DEL', WORKER .. ARGV[2])
end

-- worker id, the process that acquires it, a process whose ownership does not count, ms (0: release) -> the owner
function commands.acquire()
  local key = owner_key(ARGV[2])
  local owner = redis.call('GET', key)
  if owner and owner ~= ARGV[3] and owner ~= ARGV[4] then
    return owner
  end
  if ARGV[5] == '0' then
    redis.call('DEL', key)
  else
    redis.call('SET', key, ARGV[3], 'PX', ARGV[5])
  end
  return ARGV[3]
end

-- worker id, process, ms to own, ms until the status expires, number of lists, lists, fields of the status
-- -> the owner, and if that is the process: why the worker is paused, and how many messages wait in the lists
function commands.heartbeat()
  local key, lists = owner_key(ARGV[2]), tonumber(ARGV[6])
  local owner = redis.call('GET', key)
  if owner and owner ~= ARGV[3] then
    return {owner, false, 0}
  end
  redis.call('SET', key, ARGV[3], 'PX', ARGV[4])
  publish(ARGV[2], ARGV[5], 7 + lists)
  local waiting = 0
  for i = 7, 6 + lists do
    waiting = waiting + redis.call('LLEN', ARGV[i])
  end
  return {ARGV[3], redis.call('HGET', PAUSED, ARGV[2]), waiting}
end
