//! Picks a healthy worker at random, each as often as its weight says.

const abi = @import("abi.zig");

/// What this policy reads of its input; all other keys are skipped.
pub const Input = struct {
    workers: []const Worker,
    config: Config,
    /// 53 random bits, new for each decision.
    entropy: u64,
};

pub const Worker = struct {
    url: []const u8,
    healthy: bool,
};

pub const Config = struct {
    /// Worker URL to weight; a worker that is not in it has weight 1.
    weights: abi.Map(f64) = .{},
};

/// An index into `workers`, or null for "no worker should take this request".
pub fn choose(input: Input) !?usize {
    const weights = input.config.weights;
    var given = weights.iterator();
    while (given.next()) |entry| {
        if (entry.value_ptr.* >= 0) continue;
        const found = .{ entry.key_ptr.*, entry.value_ptr.* };
        return abi.fail("weight of {s} must be a number >= 0, not {d}", found);
    }

    var total: f64 = 0;
    for (input.workers) |worker| {
        if (worker.healthy) total += weights.get(worker.url) orelse 1;
    }
    const share = @as(f64, @floatFromInt(input.entropy)) / (1 << 53);
    const target = share * total;

    // The candidates lie side by side on a line from 0 to total. The one under the target is the
    // last that begins at or before it; asking for the beginning, not the end, leaves no gap at
    // total into which a rounded target could fall.
    var begin: f64 = 0;
    var selected: ?usize = null;
    for (input.workers, 0..) |worker, index| {
        const weight = weights.get(worker.url) orelse 1;
        if (!worker.healthy or weight == 0) continue;
        if (begin > target) break;
        selected = index;
        begin += weight;
    }
    return selected;
}
