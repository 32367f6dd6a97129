-- The figures of managed workers' starts, for the commands of managed.lua, whose constants and keys are in front; so is journal.lua.

local record = MANAGED .. ':' .. worker

-- A start has failed, so the endpoint's next one waits, each time longer.
local function count_failure(endpoint, reason, exit_code, log)
  local key = FAILURES .. endpoint
  local release, created_ms = unpack(redis.call('HMGET', record, 'release', 'created_ms'))
  local last, last_created_ms = unpack(redis.call('HMGET', key, 'release', 'created_ms'))
  if last and last ~= release then
    if tonumber(last_created_ms) > tonumber(created_ms) then
      -- A late end of an older release must not hide that the newer one fails.
      return
    end
    redis.call('DEL', key)
  end
  local count = redis.call('HINCRBY', key, 'count', 1)
  redis.call('HSET', key, 'release', release, 'created_ms', created_ms, 'reason', reason,
    'exit_code', exit_code, 'log', log, 'worker', worker,
    'until_ms', now + PAUSES_MS[math.min(count, #PAUSES_MS)])
  redis.call('PEXPIRE', key, KEPT_MS)
end

-- Adds a part of a start, between two times of the record, to its endpoint's histograms.
local function observe(endpoint, part, from_ms, to_ms)
  if not (from_ms and to_ms) then
    return
  end
  local key, ms, bucket = ENDPOINT .. endpoint .. ':starts', math.max(0, to_ms - from_ms), 1
  while BUCKETS_MS[bucket] and ms > BUCKETS_MS[bucket] do
    bucket = bucket + 1
  end
  redis.call('HINCRBY', key, part .. ':' .. bucket, 1)
  redis.call('HINCRBY', key, part .. ':sum', ms)
end

-- Hosts that could not start the endpoint's release when one of its workers was wanted last, as JSON.
local function refusing(endpoint, release)
  local all, hosts = redis.call('HGETALL', ENDPOINT .. endpoint .. ':refusing'), {}
  for i = 1, #all, 2 do
    if all[i + 1] == release then
      hosts[#hosts + 1] = all[i]
    end
  end
  return #hosts > 0 and cjson.encode(hosts) or '[]'
end

-- Adds what has happened to a private worker to the journals of the jobs that wait for it. `more`: further data.
local function add_worker_entries(endpoint, status, more)
  if redis.call('HEXISTS', record, 'role') == 1 then
    local data = more or {}
    data.status, data.worker_id = status, worker
    add_entries(endpoint, worker, 'worker', cjson.encode(data))
  end
end

local commands = {}
