-- The runs that may occupy a worker, for its next node. See common.lua for the keys and the helpers.

-- The decoded entry of RUNS, with `run` if the run may have begun; or nil.
local function run_of(worker_id, id, attempt)
  local entry = worker_id and redis.call('HGET', RUNS .. worker_id, run_field(id, attempt))
  return entry and cjson.decode(entry)
end

-- Whether the run can bring its result to another node than the one that began it.
local function outlives(run)
  return run and run.run and (run.look == 'poll' or run.callback)
end

-- Leaves the run to the worker's next node, which has the lease's time to claim it.
local function leave_to(worker_id, id, lease_ms)
  redis.call('HSET', JOB .. id, 'resume', worker_id)
  redis.call('HDEL', JOB .. id, 'claim')
  redis.call('ZADD', LEASES, now + lease_ms, id)
end

-- worker id, id, attempt, entry: writes the entry of RUNS, unless the run's slot is free again
function commands.record_run()
  local runs, name = RUNS .. ARGV[3], run_field(ARGV[4], ARGV[5])
  if redis.call('HEXISTS', runs, name) == 1 then
    redis.call('HSET', runs, name, ARGV[6])
  end
  return 1
end

-- worker id, id, attempt: the run's slot is free
function commands.clear_run()
  return redis.call('HDEL', RUNS .. ARGV[3], run_field(ARGV[4], ARGV[5]))
end

-- id, attempt, worker id, ttl, reason, lease ms: a node that ends leaves a run that outlives it to the worker's
-- next node, and requeues any other job uncounted. -> the state the job has now, or nil if the job no
-- longer runs this attempt
function commands.hand_over()
  local id, attempt, worker_id, job = ARGV[3], ARGV[4], ARGV[5], read(ARGV[3])
  if not is_running(job, attempt) then
    return false
  end
  if not outlives(run_of(worker_id, id, attempt)) then
    return requeue(id, job, false, ARGV[7], ARGV[6])
  end
  leave_to(worker_id, id, ARGV[8])
  return S.IN_PROGRESS
end

-- id, attempt, worker id, ttl, reason, lease ms, endpoint: a new node of the worker settles, before it takes any job,
-- an attempt of an earlier node. -> "resumed", "waits" for the end of the run, or "free"
function commands.adopt()
  local id, attempt, worker_id, ttl_s, reason, lease_ms =
    ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]
  local own = queue_of(ARGV[9], worker_id)
  local job, run = read(id), run_of(worker_id, id, attempt)
  if not run then
    return 'free'
  end
  local values = {
    job = id, queue = own, priority = NORMAL_PRIORITY,
    description = redis.call('HGET', JOB .. id, 'description') or ''
  }
  if is_running(job, attempt) and job.worker_id == worker_id then
    if outlives(run) and not returned(id, job, ttl_s) then
      leave_to(worker_id, id, lease_ms)
      redis.call('RPUSH', own, fill(JOB_MESSAGE, values))
      return 'resumed'
    end
    if is_running(job, attempt) then
      requeue(id, job, true, reason, ttl_s)
    end
  end
  if run.run then
    values.job = run_field(id, attempt)
    redis.call('RPUSH', own, fill(AWAIT_MESSAGE, values))
    return 'waits'
  end
  redis.call('HDEL', RUNS .. worker_id, run_field(id, attempt))
  return 'free'
end
