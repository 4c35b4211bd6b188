//! Picks the healthy worker with the fewest requests in flight.

/// What this policy reads of its input; all other keys are skipped.
pub const Input = struct {
    workers: []const Worker,
    /// 53 random bits, new for each decision.
    entropy: u64,
};

pub const Worker = struct {
    healthy: bool,
    /// Requests in flight.
    load: u64,
};

/// An index into `workers`, or null for "no worker should take this request".
pub fn choose(input: Input) !?usize {
    var lowest: u64 = 0;
    var ties: u64 = 0;
    for (input.workers) |worker| {
        if (!worker.healthy or (ties > 0 and worker.load > lowest)) continue;
        if (worker.load < lowest) ties = 0;
        lowest = worker.load;
        ties += 1;
    }
    if (ties == 0) return null;

    // Always taking the first one would send the requests of an idle pool to a single worker.
    var number = input.entropy % ties;
    for (input.workers, 0..) |worker, index| {
        if (!worker.healthy or worker.load != lowest) continue;
        if (number == 0) return index;
        number -= 1;
    }
    unreachable;
}
