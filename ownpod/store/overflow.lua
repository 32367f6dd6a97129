-- Jobs that go to cloud workers. See common.lua for the keys and the helpers. overflow.py puts the constants in front: BUDGET,
-- see budgets.lua, DAY_MS, SCANNED, PREFER_MS.

-- Whether a job may go to a cloud worker: it waits in its endpoint's own queue, and nothing keeps it here.
local function may_go(id, queue, largest, secrets)
  local key = JOB .. id
  local status, own, private, stays, hops = unpack(redis.call('HMGET', key, 'status', 'queue', 'private', 'stays', 'hops'))
  return status == S.IN_QUEUE and (own or queue) == queue and not private and not stays and not hops
    and redis.call('HSTRLEN', key, 'input') <= largest and (secrets or redis.call('HEXISTS', key, 's3_config') == 0)
end

-- Ids of the jobs that have waited long enough and may go: those of normal priority first, and the oldest first.
local function candidates(endpoint, after_ms, largest, secrets, most)
  local queue, normal, low = QUEUE_PREFIX .. endpoint, {}, {}
  local before = string.format('%.0f', now - after_ms)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', of(endpoint, 'queued'), '-inf', before, 'LIMIT', 0, SCANNED)) do
    local readable, goes = pcall(may_go, id, queue, largest, secrets)
    if readable and goes then
      local list = redis.call('ZSCORE', of(endpoint, 'low'), id) and low or normal
      list[#list + 1] = id
    end
    if #normal == most then
      break
    end
  end
  for _, id in ipairs(low) do
    if #normal < most then
      normal[#normal + 1] = id
    end
  end
  return normal
end

-- endpoint, worker id, ms that a job must have waited, largest input, also with secrets (0|1)
-- -> now; of the first job that may go, since when it waits, or -1, and its executionTimeout; what the worker has spent and
-- reserved today; number of jobs in the worker's own queue
function commands.overflow_seen()
  local endpoint, worker_id = ARGV[3], ARGV[4]
  local first = candidates(endpoint, tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1', 1)[1]
  local created_ms, timeout_ms = -1, 0
  if first then
    created_ms, timeout_ms = unpack(redis.call('HMGET', JOB .. first, 'created_ms', 'execution_timeout_ms'))
  end
  local spent, reserved = unpack(redis.call('HMGET', BUDGET .. worker_id .. ':' .. math.floor(now / DAY_MS), 'spent', 'reserved'))
  return {now, created_ms, timeout_ms, spent or 0, reserved or 0, redis.call('ZCARD', WAITING .. queue_of(endpoint, worker_id))}
end

-- endpoint, worker id, ms that a job must have waited, largest input, also with secrets (0|1), the worker's capacity -> ids of jobs
-- that wait in the worker's own queue now, and did not before: as many as it has free slots. Each only prefers it: it returns to its endpoint's queue when the node does not claim it.
function commands.overflow_take()
  local endpoint, worker_id = ARGV[3], ARGV[4]
  local own, taken = queue_of(endpoint, worker_id), {}
  local most = ARGV[8] - redis.call('HLEN', RUNS .. worker_id) - redis.call('ZCARD', WAITING .. own)
  if most <= 0 then
    return taken
  end
  for _, id in ipairs(candidates(endpoint, tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1', most)) do
    local job = read(id)
    local list, message = list_of(job), job_message(id, job)
    -- A message that is not in the list is on its way to another worker.
    if redis.call('LPOS', list, message, 'RANK', -1, 'MAXLEN', LREM_MOST) then
      redis.call('LREM', list, -1, message)
      leave_queue(id, job)
      job.queue, job.pinned = own, true
      redis.call('HSET', JOB .. id, 'queue', own)
      enter_queue(id, job)
      redis.call('ZADD', PREFERRING, now + PREFER_MS, id)
      push_message(id, job, 'LPUSH')
      taken[#taken + 1] = id
    end
  end
  return taken
end

-- id: the job stays here from now on -> 1
function commands.overflow_keep()
  if redis.call('EXISTS', JOB .. ARGV[3]) == 1 then
    redis.call('HSET', JOB .. ARGV[3], 'stays', 1)
  end
  return 1
end

-- id, attempt, JSON of the run at the other side, begun there (0|1), ms that it has run, progress JSON or ''
-- -> 1, or 0 if the job no longer runs this attempt. When the run has begun there, the attempt begins, too: once.
function commands.overflow_remote()
  local id, attempt, key, job = ARGV[3], ARGV[4], JOB .. ARGV[3], read(ARGV[3])
  if not is_running(job, attempt) then
    return 0
  end
  local earlier, begun = unpack(redis.call('HMGET', key, 'remote', 'remote_begun'))
  redis.call('HSET', key, 'remote', ARGV[5])
  if not earlier then
    try_add_entry(id, 'connection', cjson.encode({
      status = 'overflow', task_id = id, endpoint = job.endpoint, worker_id = job.worker_id
    }), attempt)
  end
  if ARGV[6] == '1' and begun ~= attempt then
    local started_ms = math.max(tonumber(job.started_ms), now - math.max(tonumber(ARGV[7]), 0))
    redis.call('HSET', key, 'remote_begun', attempt, 'started_ms', string.format('%.0f', started_ms))
    redis.call('HDEL', key, 'progress')
    publish(job.followed, id .. ' ' .. S.IN_PROGRESS)
  end
  if ARGV[8] ~= '' then
    redis.call('HSET', key, 'progress', ARGV[8])
  end
  return 1
end
