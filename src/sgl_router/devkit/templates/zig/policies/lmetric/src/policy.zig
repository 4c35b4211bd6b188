//! Picks the healthy worker with the lowest product of the prompt tokens that it would have to
//! prefill and the requests that it would serve (LMetric, arXiv 2603.15202).

/// What this policy reads of its input; all other keys are skipped.
pub const Input = struct {
    workers: []const Worker,
    request: Request,
    /// 53 random bits, new for each decision.
    entropy: u64,
};

pub const Worker = struct {
    healthy: bool,
    /// Requests in flight.
    load: u64,
    /// Prompt tokens sent to it that have not been answered yet.
    pending_tokens: u64 = 0,
    /// Tokens of this prompt that it still holds.
    prefix_match: u64 = 0,

    /// `*%` and `+%` wrap around, `-|` stops at 0.
    fn cost(worker: Worker, prompt_tokens: u64) u64 {
        const prefill = worker.pending_tokens +% (prompt_tokens -| worker.prefix_match);
        return prefill *% (worker.load +% 1);
    }
};

pub const Request = struct {
    /// Estimated tokens of this request's prompt.
    prompt_tokens: u64 = 0,
};

/// An index into `workers`, or null for "no worker should take this request".
pub fn choose(input: Input) !?usize {
    const prompt_tokens = input.request.prompt_tokens;
    var lowest: u64 = 0;
    var ties: u64 = 0;
    for (input.workers) |worker| {
        if (!worker.healthy) continue;
        const cost = worker.cost(prompt_tokens);
        if (ties > 0 and cost > lowest) continue;
        if (cost < lowest) ties = 0;
        lowest = cost;
        ties += 1;
    }
    if (ties == 0) return null;

    var number = input.entropy % ties;
    for (input.workers, 0..) |worker, index| {
        if (!worker.healthy or worker.cost(prompt_tokens) != lowest) continue;
        if (number == 0) return index;
        number -= 1;
    }
    unreachable;
}
