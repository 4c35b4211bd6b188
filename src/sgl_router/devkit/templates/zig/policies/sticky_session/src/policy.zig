//! Sends the requests of one session to one healthy worker, by rendezvous hashing: where a worker
//! goes or comes, only its own sessions move. A request without a session goes to the healthy
//! worker with the fewest requests in flight.

/// What this policy reads of its input; all other keys are skipped.
pub const Input = struct {
    workers: []const Worker,
    request: Request,
    /// 53 random bits, new for each decision.
    entropy: u64,
};

pub const Worker = struct {
    url: []const u8,
    healthy: bool,
    /// Requests in flight.
    load: u64,
};

pub const Request = struct {
    session: ?[]const u8 = null,
};

/// An index into `workers`, or null for "no worker should take this request".
pub fn choose(input: Input) !?usize {
    const session = input.request.session orelse "";
    if (session.len == 0) return lowestLoad(input.workers, input.entropy);
    return highestScore(input.workers, session);
}

fn highestScore(workers: []const Worker, session: []const u8) ?usize {
    const key = fnv1a64(session);
    var best: ?usize = null;
    var highest: u64 = 0;
    for (workers, 0..) |worker, index| {
        if (!worker.healthy) continue;
        const score = fmix64(key ^ fnv1a64(worker.url));
        if (best != null and score <= highest) continue;
        best = index;
        highest = score;
    }
    return best;
}

/// FNV-1a of 64 bits.
fn fnv1a64(text: []const u8) u64 {
    var hash: u64 = 0xcbf29ce484222325;
    for (text) |byte| hash = (hash ^ byte) *% 0x100000001b3;
    return hash;
}

/// The finalizer of MurmurHash3: makes one score of two hashes.
fn fmix64(hashes: u64) u64 {
    var hash = hashes;
    hash = (hash ^ hash >> 33) *% 0xff51afd7ed558ccd;
    hash = (hash ^ hash >> 33) *% 0xc4ceb9fe1a85ec53;
    return hash ^ hash >> 33;
}

fn lowestLoad(workers: []const Worker, entropy: u64) ?usize {
    var lowest: u64 = 0;
    var ties: u64 = 0;
    for (workers) |worker| {
        if (!worker.healthy or (ties > 0 and worker.load > lowest)) continue;
        if (worker.load < lowest) ties = 0;
        lowest = worker.load;
        ties += 1;
    }
    if (ties == 0) return null;

    var number = entropy % ties;
    for (workers, 0..) |worker, index| {
        if (!worker.healthy or worker.load != lowest) continue;
        if (number == 0) return index;
        number -= 1;
    }
    unreachable;
}
