-- The jobs of private workers when their worker ends. See common.lua for the keys and the helpers.

-- id, private worker, error, code, ttl, also if it runs (0|1) -> 1: the job is FAILED now; 0: it is not this worker's any more
function commands.end_job()
  local id, job = ARGV[3], read(ARGV[3])
  if job.private ~= ARGV[4] or not (job.status == S.IN_QUEUE or job.status == S.IN_PROGRESS and ARGV[8] == '1') then
    return 0
  end
  if job.status == S.IN_QUEUE then
    remove_message(id, job)
  end
  return finish(id, job, S.FAILED, ARGV[7], {'error', ARGV[5], 'code', ARGV[6]}) and 1 or 0
end

-- id, private worker, another one -> 1: the waiting job waits for the other one now; 0: it does not wait for the first, or the
-- other one takes no jobs
function commands.move_private()
  local id, other, job = ARGV[3], ARGV[5], read(ARGV[3])
  if job.private == other and job.status == S.IN_QUEUE then
    return 1
  end
  if job.private ~= ARGV[4] or job.status ~= S.IN_QUEUE or refuses({private = other, endpoint = job.endpoint}) then
    return 0
  end
  remove_message(id, job)
  leave_queue(id, job)
  job.private, job.queue = other, queue_of(job.endpoint, other)
  redis.call('HSET', JOB .. id, 'private', other, 'queue', job.queue)
  redis.call('HINCRBY', JOB .. id, 'moves', 1)
  enter_queue(id, job)
  push_message(id, job, 'LPUSH')
  touch(job)
  return 1
end
