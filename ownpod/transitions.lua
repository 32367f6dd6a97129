-- Every change of a job record, each one atomic step. store.py puts the constants in front:
-- S (states), MOVES (allowed moves), JOB, ENDPOINT, LEASES, EVENTS (see keys.py).
--
-- JOB<id>                   hash   the record; fields in jobs.py (NewJob.record, Job.FIELDS), and
--                                  `claim`, the token of the delivery that runs it
-- ENDPOINT<ep>:queued       zset   ids of jobs IN_QUEUE, by created_ms
-- ENDPOINT<ep>:purging      zset   ids taken out of `queued` by a purge, on their way to CANCELLED
-- ENDPOINT<ep>:running      hash   ids of jobs IN_PROGRESS -> worker id
-- ENDPOINT<ep>:counts       hash   terminal state, or "retried" -> how many ever
-- LEASES                    zset   ids of jobs IN_PROGRESS, by the ms when the lease runs out
-- EVENTS                    pub/sub "<id> <state>" for each move
-- Celery's lists (messages) come as arguments: their names and contents are broker.py's.
--
-- Keys are computed from ids, so this needs one Redis, not a cluster; so does Celery's broker.

local command, now = ARGV[1], tonumber(ARGV[2])

local function of(endpoint, what)
  return ENDPOINT .. endpoint .. ':' .. what
end

-- Takes the job to a state, if the table of moves allows it. `fields` are name, value, ...
local function move(id, to, fields)
  local job = JOB .. id
  local from, endpoint, created_ms = unpack(redis.call('HMGET', job, 'status', 'endpoint', 'created_ms'))
  if not from or not MOVES[from][to] then
    return false
  end
  if from == S.IN_QUEUE then
    redis.call('ZREM', of(endpoint, 'queued'), id)
  else
    redis.call('HDEL', of(endpoint, 'running'), id)
    redis.call('ZREM', LEASES, id)
  end
  if to == S.IN_QUEUE then
    redis.call('HDEL', job, 'worker_id', 'started_ms', 'claim')
    redis.call('ZADD', of(endpoint, 'queued'), created_ms, id)
  end
  redis.call('HSET', job, 'status', to, unpack(fields))
  redis.call('PUBLISH', EVENTS, id .. ' ' .. to)
  return endpoint
end

local function finish(id, to, ttl_s, fields)
  fields[#fields + 1] = 'finished_ms'
  fields[#fields + 1] = now
  local endpoint = move(id, to, fields)
  if not endpoint then
    return false
  end
  redis.call('EXPIRE', JOB .. id, ttl_s)
  redis.call('HINCRBY', of(endpoint, 'counts'), to, 1)
  return true
end

local function holds(id, attempt)
  local status, current = unpack(redis.call('HMGET', JOB .. id, 'status', 'attempt'))
  return status == S.IN_PROGRESS and current == attempt
end

local function rest(first)
  local values = {}
  for i = first, #ARGV do
    values[#values + 1] = ARGV[i]
  end
  return values
end

local commands = {}

-- id, endpoint, list, message, name, value, ... -> 1, or 0 if the id exists (a repeated call)
function commands.create()
  local id, endpoint, list, message = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  if redis.call('EXISTS', JOB .. id) == 1 then
    return 0
  end
  redis.call('HSET', JOB .. id, unpack(rest(7)))
  redis.call('ZADD', of(endpoint, 'queued'), now, id)
  redis.call('LPUSH', list, message)
  return 1
end

-- id, worker id, claim, lease end, name, ... -> the named fields, or nil if there is nothing to do.
-- The same claim again is the same delivery, repeated because its answer was lost on the way.
function commands.claim()
  local id, worker_id, claim, lease_end = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local job = JOB .. id
  local attempt, held = unpack(redis.call('HMGET', job, 'attempt', 'claim'))
  if held ~= claim then
    local fields = {
      'attempt', (tonumber(attempt) or 0) + 1, 'worker_id', worker_id, 'claim', claim, 'started_ms', now
    }
    local endpoint = move(id, S.IN_PROGRESS, fields)
    if not endpoint then
      return false
    end
    redis.call('HSET', of(endpoint, 'running'), id, worker_id)
    redis.call('ZADD', LEASES, lease_end, id)
  end
  return redis.call('HMGET', job, unpack(rest(7)))
end

-- id, attempt, state, ttl, name, value, ... -> 1, or 0 if the attempt is no longer the job's
function commands.finish()
  local id, attempt, to, ttl_s = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  if not holds(id, attempt) or not finish(id, to, ttl_s, rest(7)) then
    return 0
  end
  return 1
end

-- id, attempt, list, message, lost (0|1), reason, ttl, expired before (0: whatever the lease says)
-- -> the state the job has now, or nil if the attempt is no longer the job's
function commands.hand_back()
  local id, attempt, list, message = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local lost, reason, ttl_s, expired_before = ARGV[7] == '1', ARGV[8], ARGV[9], tonumber(ARGV[10])
  if not holds(id, attempt) then
    return false
  end
  if expired_before > 0 and tonumber(redis.call('ZSCORE', LEASES, id) or 0) >= expired_before then
    return false
  end
  if lost then
    local count = redis.call('HINCRBY', JOB .. id, 'lost', 1)
    local most, endpoint = unpack(redis.call('HMGET', JOB .. id, 'max_attempts', 'endpoint'))
    if count >= tonumber(most) then
      finish(id, S.FAILED, ttl_s, {'error', reason})
      return S.FAILED
    end
    redis.call('HINCRBY', of(endpoint, 'counts'), 'retried', 1)
  end
  move(id, S.IN_QUEUE, {})
  redis.call('RPUSH', list, message)
  return S.IN_QUEUE
end

-- id, endpoint, list, message, ttl, reason -> the state the job has now, or nil if there is none
function commands.cancel()
  local id, endpoint, list, message, ttl_s, reason = unpack(rest(3))
  local status, owner = unpack(redis.call('HMGET', JOB .. id, 'status', 'endpoint'))
  if owner ~= endpoint then
    return false
  end
  if status == S.IN_QUEUE then
    redis.call('LREM', list, 1, message)
  end
  if finish(id, S.CANCELLED, ttl_s, {'error', reason}) then
    return S.CANCELLED
  end
  return status
end

-- lease end, id, attempt, id, attempt, ... -> ids whose attempt is no longer the job's
function commands.renew()
  local lease_end, gone = ARGV[3], {}
  for i = 4, #ARGV, 2 do
    if holds(ARGV[i], ARGV[i + 1]) then
      redis.call('ZADD', LEASES, lease_end, ARGV[i])
    else
      gone[#gone + 1] = ARGV[i]
    end
  end
  return gone
end

-- endpoint, list, ... -> how many jobs are to be cancelled by purge_some
function commands.purge()
  local queued, purging = of(ARGV[3], 'queued'), of(ARGV[3], 'purging')
  redis.call('ZUNIONSTORE', purging, 2, purging, queued, 'AGGREGATE', 'MIN')
  redis.call('DEL', queued, unpack(rest(4)))
  return redis.call('ZCARD', purging)
end

-- endpoint, limit, ttl, reason -> cancelled, left
function commands.purge_some()
  local purging, cancelled = of(ARGV[3], 'purging'), 0
  local ids = redis.call('ZRANGE', purging, 0, tonumber(ARGV[4]) - 1)
  for _, id in ipairs(ids) do
    if redis.call('HGET', JOB .. id, 'status') == S.IN_QUEUE
        and finish(id, S.CANCELLED, ARGV[5], {'error', ARGV[6]}) then
      cancelled = cancelled + 1
    end
  end
  if #ids > 0 then
    redis.call('ZREM', purging, unpack(ids))
  end
  return {cancelled, redis.call('ZCARD', purging)}
end

return commands[command]()
