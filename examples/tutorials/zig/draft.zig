//! Fills engines one after the other, so that idle ones can be stopped.

/// What this policy reads of its input; all other keys are skipped.
pub const Input = struct {
    workers: []const Worker,
    config: Config,
};

pub const Worker = struct {
    healthy: bool,
    /// Requests in flight.
    load: u64,
};

pub const Config = struct {
    /// A worker with this many requests in flight is full.
    limit: u64 = 8,
};

/// An index into `workers`, or null for "no worker should take this request".
pub fn choose(input: Input) !?usize {
    const workers = input.workers;
    var fullest: ?usize = null; // of those that are not full
    for (workers, 0..) |worker, index| {
        if (!worker.healthy or worker.load >= input.config.limit) continue;
        if (fullest == null or worker.load > workers[fullest.?].load) fullest = index;
    }
    return fullest.?;
}
