-- A job's way from its submission to its end. See common.lua for the keys and the helpers.

-- Writes the end of an attempt without a result into the job's log.
local function log_attempt(id, job, lost, reason)
  local log, remote = unpack(redis.call('HMGET', JOB .. id, 'attempts', 'remote'))
  local entries = log and cjson.decode(log) or {}
  entries[#entries + 1] = {
    attempt = tonumber(job.attempt), workerId = job.worker_id, startedMs = tonumber(job.started_ms),
    endedMs = now, lost = lost, reason = reason, remote = remote and cjson.decode(remote) or nil
  }
  if remote then
    redis.call('HDEL', JOB .. id, 'remote', 'remote_begun')
  end
  while #entries > ATTEMPTS_LOGGED do
    table.remove(entries, 1)
  end
  redis.call('HSET', JOB .. id, 'attempts', cjson.encode(entries))
end

-- The error of a job whose last allowed attempt was lost, and for a private worker's a word for it.
local function why_lost(job, reason)
  if not job.private then
    return {'error', reason}
  end
  local phase, role, ending, memory, words = unpack(redis.call('HMGET', MANAGED .. ':' .. job.private,
    'phase', 'role', 'ending', 'out_of_memory', 'reason'))
  if phase ~= 'stopping' and phase ~= 'stopped' then
    return {'error', reason, 'code', 'lost'}
  end
  local code = memory == '1' and 'oom' or ending and 'session_ended' or 'crashed'
  return {'error', role .. ' ' .. job.private .. ' ended: ' .. (ending or code) .. ' (' .. (words or reason) .. ')',
    'code', code}
end

-- Ends an attempt without a result. The job returns to the front of its queue, or is FAILED when the
-- last allowed attempt was lost. -> the state the job has now
local function requeue(id, job, lost, reason, ttl_s)
  if returned(id, job, ttl_s) then
    return S.COMPLETED
  end
  log_attempt(id, job, lost, reason)
  if lost then
    local times = redis.call('HINCRBY', JOB .. id, 'lost', 1)
    local limit = redis.call('HGET', JOB .. id, 'max_attempts')
    count(job.endpoint, 'lost')
    if times >= tonumber(limit) then
      finish(id, job, S.FAILED, ttl_s, why_lost(job, reason))
      return S.FAILED
    end
    redis.call('HINCRBY', JOB .. id, 'retries', 1)
    count(job.endpoint, 'retried')
  end
  move(id, job, S.IN_QUEUE, {})
  if job.pinned then
    -- A node consumes its own queue also while the worker takes no jobs: without a pause the job would come
    -- back at once, again and again.
    local pause_ms = math.min(PINNED_PAUSE_MS * 2 ^ (job.attempt - 1), PINNED_PAUSE_MOST_MS)
    redis.call('ZADD', DELAYED, now + pause_ms, id)
  else
    push_message(id, job, 'RPUSH')
  end
  return S.IN_QUEUE
end

-- id, endpoint, queue ('': the endpoint's), description, most queued (0: any), idempotency key ('': none),
-- its seconds, the body's digest, created_ms ('': now), ttl_ms, low priority (0|1), private worker or '', name, value, ...
-- -> "created", or "full", or "ended" and the reason of the private worker's end, or "busy" and the numbers of jobs that wait for
-- it and that may, or the id and digest of the job that was created under the same key, while
-- there is a record of it
function commands.create()
  local id, endpoint = ARGV[3], ARGV[4]
  local limit, key, key_s, digest = tonumber(ARGV[7]), ARGV[8], ARGV[9], ARGV[10]
  local created_ms, shared = tonumber(ARGV[11]) or now, QUEUE_PREFIX .. endpoint
  local queue = ARGV[5] ~= '' and ARGV[5] or shared
  if redis.call('EXISTS', JOB .. id) == 1 then
    return {'created'}
  end
  if key ~= '' then
    local earlier = redis.call('HMGET', key, 'job', 'digest')
    if earlier[1] and redis.call('EXISTS', JOB .. earlier[1]) == 1 then
      return earlier
    end
  end
  if limit > 0 and redis.call('ZCARD', of(endpoint, 'queued')) >= limit then
    return {'full'}
  end
  local job = {
    endpoint = endpoint, queue = queue, pinned = queue ~= shared, created_ms = created_ms,
    ttl_ms = tonumber(ARGV[12]), low = ARGV[13] == '1', description = ARGV[6],
    private = ARGV[14] ~= '' and ARGV[14] or nil
  }
  if job.private then
    local reason, waiting = refuses(job), redis.call('ZCARD', WAITING .. queue)
    local most = tonumber(redis.call('HGET', MANAGED .. ':' .. job.private, 'queue_max') or 0)
    if reason then
      return {'ended', reason}
    elseif most > 0 and waiting >= most then
      return {'busy', waiting, most}
    end
    touch(job)
  end
  redis.call('HSET', JOB .. id, 'created_ms', created_ms, 'queue', queue, 'description', ARGV[6],
    unpack(rest(15)))
  enter_queue(id, job)
  if job.pinned and redis.call('HGET', JOB .. id, 'affinity') == SOFT then
    redis.call('ZADD', PREFERRING, now + PREFER_MS, id)
  end
  remember(id, endpoint, created_ms)
  push_message(id, job, 'LPUSH')
  count(endpoint, 'submitted')
  if key ~= '' then
    redis.call('HSET', key, 'job', id, 'digest', digest)
    redis.call('EXPIRE', key, key_s)
  end
  return {'created'}
end

-- id, endpoint, new id -> the state of the old job, which is retried only if that is FAILED or TIMED_OUT;
-- nil if there is none. With its own id the same record is submitted again.
function commands.retry()
  local id, endpoint, new_id = ARGV[3], ARGV[4], ARGV[5]
  local key, again, job = JOB .. id, JOB .. new_id, read(id)
  local status = job.status
  if redis.call('HGET', again, 'retry_call') == token then
    -- The answer was lost; the old job was FAILED or TIMED_OUT.
    return S.FAILED
  end
  if job.endpoint ~= endpoint then
    return false
  end
  if status ~= S.FAILED and status ~= S.TIMED_OUT then
    return status
  end
  if job.private and refuses(job) then
    return 'ENDED'
  end
  if new_id == id then
    redis.call('PERSIST', key)
    redis.call('HINCRBY', key, 'retries', 1)
  else
    if redis.call('EXISTS', again) == 1 then
      return status
    end
    local values, fields = redis.call('HMGET', key, unpack(RETRIED)), {}
    for i, name in ipairs(RETRIED) do
      if values[i] then
        fields[#fields + 1] = name
        fields[#fields + 1] = values[i]
      end
    end
    redis.call('HSET', again, 'id', new_id, 'attempt', 0, 'retries', 0, 'retry_of', id, unpack(fields))
    redis.call('HSET', key, 'retried_as', new_id)
  end
  redis.call(
    'HDEL', again, 'worker_id', 'started_ms', 'finished_ms', 'execution_ms', 'output', 'error',
    'claim', 'drained', 'deliveries', 'attempts', 'callback', 'retried_as', 'chunk_bytes', 'chunk_calls',
    'code', 'exit_code', 'moves', 'remote', 'remote_begun'
  )
  redis.call('DEL', CHUNKS .. new_id)
  forget_journal(new_id)
  redis.call('ZREM', WEBHOOKS, new_id)
  redis.call('HSET', again, 'status', S.IN_QUEUE, 'lost', 0, 'created_ms', now, 'queue', job.queue,
    'retry_call', token)
  count(endpoint, 'retried')
  job.created_ms = now
  enter_queue(new_id, job)
  remember(new_id, endpoint, now)
  push_message(new_id, job, 'LPUSH')
  if new_id == id then
    publish(job.followed, id .. ' ' .. S.IN_QUEUE)
  end
  return status
end

-- id, worker id, claim, lease ms, record ttl, name, ... -> the entry of RUNS and, if the job can be claimed,
-- `now` and the named fields; nil if there is nothing to do. The same claim again is the same delivery,
-- repeated because its answer was lost. A job whose ttl has expired ends here and reaches no worker. A
-- run that an earlier node of this worker began is adopted as the same attempt.
function commands.claim()
  local id, worker_id, claim, lease_ms, ttl_s = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  local key, runs, job = JOB .. id, RUNS .. worker_id, read(id)
  local function given(entry)
    return {entry, now, unpack(redis.call('HMGET', key, unpack(rest(8))))}
  end
  if not job.status then
    return false
  end
  if job.claim == claim then
    local entry = redis.call('HGET', runs, run_field(id, job.attempt)) or '{}'
    return given(entry)
  end
  if job.status == S.IN_PROGRESS and job.resume == worker_id then
    local entry = redis.call('HGET', runs, run_field(id, job.attempt))
    if entry then
      redis.call('HDEL', key, 'resume')
      redis.call('HSET', key, 'claim', claim)
      if cjson.decode(entry).look ~= 'poll' then
        redis.call('HSET', key, 'awaits', 1)
      end
      redis.call('ZADD', LEASES, now + lease_ms, id)
      return given(entry)
    end
  end
  if job.status == S.IN_QUEUE and job.created_ms + job.ttl_ms <= now then
    expire_job(id, job, ttl_s)
    return false
  end
  if job.status == S.IN_QUEUE and job.pinned and job.queue ~= queue_of(job.endpoint, worker_id) then
    return false
  end
  if job.status == S.IN_QUEUE and job.private and refuses(job) then
    -- Housekeeping ends the job, or moves it to another session.
    return false
  end
  local number = job.attempt + 1
  local fields = {
    'attempt', number, 'worker_id', worker_id, 'claim', claim, 'callback', claim, 'started_ms', now
  }
  if job.status ~= S.IN_QUEUE or not move(id, job, S.IN_PROGRESS, fields) then
    redis.call('ZREM', of(job.endpoint, 'left'), id)
    local entry = redis.call('HGET', runs, run_field(id, job.attempt))
    return entry and {entry}
  end
  if job.pinned and redis.call('ZSCORE', PREFERRING, id) then
    unpin(id, job)
  end
  if job.private then
    touch(job)
  end
  count(job.endpoint, 'begun')
  if number == 1 then
    observe(of(job.endpoint, 'delay'), now - job.created_ms)
  else
    redis.call('DEL', CHUNKS .. id)
    redis.call('HDEL', key, 'chunk_bytes', 'chunk_calls')
  end
  redis.call('HSET', of(job.endpoint, 'running'), id, worker_id)
  if #worker_id == 14 and not string.find(worker_id, '[^a-z0-9]') then
    -- The scaler would not see a managed worker's job that begins and ends between two of its reads.
    redis.call('HDEL', MANAGED_IDLE, worker_id)
  end
  local entry = '{"attempt": ' .. number .. '}'
  redis.call('HSET', runs, run_field(id, number), entry)
  redis.call('EXPIRE', runs, RUNS_KEPT_S)
  redis.call('ZADD', LEASES, now + lease_ms, id)
  return given(entry)
end

-- lease ms, id, attempt, id, attempt, ... -> ids of jobs that no longer run this attempt. The lease of a record that
-- cannot be read is renewed too, because an error would leave all other leases to expire.
function commands.renew()
  local lease_end, gone = now + ARGV[3], {}
  for i = 4, #ARGV, 2 do
    local readable, job = pcall(read, ARGV[i])
    if not readable or is_running(job, ARGV[i + 1]) then
      redis.call('ZADD', LEASES, lease_end, ARGV[i])
    else
      gone[#gone + 1] = ARGV[i]
    end
  end
  return gone
end

-- id, attempt, worker id if its slot is free, or '', state, ttl, name, value, ... -> 1, or 0 if the job no
-- longer runs this attempt
function commands.finish()
  local id, attempt, free, to, ttl_s = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  if free ~= '' then
    redis.call('HDEL', RUNS .. free, run_field(id, attempt))
  end
  local job, fields = read(id), rest(8)
  if not is_running(job, attempt) or not finish(id, job, to, ttl_s, fields) then
    return 0
  end
  local ran_ms = now - job.started_ms
  for i = 1, #fields, 2 do
    if fields[i] == 'execution_ms' then
      ran_ms = tonumber(fields[i + 1]) or ran_ms
    end
  end
  observe(of(job.endpoint, 'execution'), ran_ms)
  return 1
end

-- id, endpoint, token, ttl, output -> the state the job has now, or nil if the token is not its run's.
-- While a node waits for the run, the output is only kept: the node may bring more than the callback.
function commands.callback()
  local id, endpoint, run_token, ttl_s, output = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  local job = read(id)
  if job.endpoint ~= endpoint or job.callback ~= run_token then
    return false
  end
  if job.status == S.IN_PROGRESS and job.claim and not job.awaits then
    redis.call('HSET', JOB .. id, 'returned', output)
  else
    finish(id, job, S.COMPLETED, ttl_s, {'output', output})
  end
  return job.status
end

-- id, attempt, worker id if its slot is free, or '', lost (0|1), reason, ttl, lease end (as `expired`
-- answered it: only if the lease was not renewed since; 0: any lease) -> the state the job has now, or
-- nil if the job no longer runs this attempt
function commands.requeue()
  local id, attempt, free, lease_end = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[9])
  if free ~= '' then
    redis.call('HDEL', RUNS .. free, run_field(id, attempt))
  end
  local job = read(id)
  if not is_running(job, attempt) then
    return false
  end
  if lease_end > 0 and tonumber(redis.call('ZSCORE', LEASES, id) or lease_end) ~= lease_end then
    return false
  end
  return requeue(id, job, ARGV[6] == '1', ARGV[7], ARGV[8])
end

-- id, endpoint, ttl, reason -> the state the job has now, or nil if there is none
function commands.cancel()
  local id, endpoint, ttl_s, reason = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local job = read(id)
  if job.endpoint ~= endpoint then
    return false
  end
  if job.status == S.IN_QUEUE then
    remove_message(id, job)
  end
  finish(id, job, S.CANCELLED, ttl_s, {'error', reason})
  return job.status
end

-- id, "watched" or "followed", channel: subscribes the channel to the job's end, or to each change
function commands.subscribe()
  local key, name, channel = JOB .. ARGV[3], ARGV[4], ARGV[5]
  local channels, exists = unpack(redis.call('HMGET', key, name, 'id'))
  if exists and not string.find(channels or '', channel, 1, true) then
    redis.call('HSET', key, name, (channels and channels .. ' ' or '') .. channel)
  end
  return 1
end
