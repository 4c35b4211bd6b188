//! Carries `policy.zig` to the router: memory, JSON in and out, panics. A policy's author need not
//! touch this file, and may use what it has of `pub`.

const std = @import("std");
const builtin = @import("builtin");
const json = @import("json.zig");
const policy = @import("policy.zig");

const heap = std.heap.wasm_allocator;

var arena: std.heap.ArenaAllocator = .init(heap);
var problem: []const u8 = "";

/// An object whose keys are known only when it is read: `Map(f64)` of `{"URL": 2.5}`.
pub const Map = json.Map;

/// What is allocated here is freed after the decision.
pub const memory = arena.allocator();

/// Reports a failure with a text: `return fail("{s} is no region", .{region})`.
pub fn fail(comptime text: []const u8, values: anytype) error{ PolicyFailed, OutOfMemory } {
    problem = try std.fmt.allocPrint(memory, text, values);
    return error.PolicyFailed;
}

/// Read by the router after a trap.
export var sgl_panic_message: [1024]u8 = @splat(0);

pub const panic = std.debug.FullPanic(struct {
    fn panic(message: []const u8, _: ?usize) noreturn {
        const length = @min(message.len, sgl_panic_message.len - 1);
        @memcpy(sgl_panic_message[0..length], message[0..length]);
        sgl_panic_message[length] = 0;
        @trap();
    }
}.panic);

export fn init() void {}

export fn alloc(size: usize) ?[*]u8 {
    return heap.rawAlloc(@max(size, 1), .@"1", @returnAddress());
}

export fn dealloc(pointer: [*]u8, size: usize) void {
    heap.rawFree(pointer[0..@max(size, 1)], .@"1", @returnAddress());
}

/// Takes the input as JSON and returns the output as NUL-terminated JSON.
export fn select_worker(pointer: [*]const u8, length: usize) ?[*]u8 {
    _ = arena.reset(.{ .retain_with_limit = 64 * 1024 });
    const answer = decide(pointer[0..length]) catch |err| Answer{ .@"error" = reason(err) };
    const text = std.json.Stringify.valueAlloc(memory, answer, .{}) catch return null;
    const result = heap.rawAlloc(text.len + 1, .@"1", @returnAddress()) orelse return null;
    @memcpy(result[0..text.len], text);
    result[text.len] = 0;
    return result;
}

comptime {
    if (builtin.zig_version.order(.{ .major = 0, .minor = 17, .patch = 0 }) == .lt)
        @compileError("Zig " ++ builtin.zig_version_string ++ " is too old; expected 0.17: pip install 'ziglang==0.17.*'");
    if (@hasDecl(policy, "complete")) @export(&onRequestComplete, .{ .name = "on_request_complete" });
}

fn onRequestComplete(pointer: [*]const u8, length: usize) callconv(.c) void {
    _ = arena.reset(.{ .retain_with_limit = 64 * 1024 });
    const outcome = parsed(policy.Outcome, pointer[0..length]) catch |err| @panic(reason(err));
    policy.complete(outcome) catch |err| @panic(reason(err));
}

/// What `choose` returns, without its error.
const Chosen = @typeInfo(@typeInfo(@TypeOf(policy.choose)).@"fn".return_type.?).error_union.payload;

const State = if (Chosen == ?usize) struct {} else @FieldType(Chosen, "state");

const Answer = struct {
    selected_worker: ?usize = null,
    state: ?State = null,
    @"error": ?[]const u8 = null,
};

fn decide(input: []const u8) !Answer {
    const read = try parsed(policy.Input, input);
    // Not inlined, so that the backtrace of a trap names it.
    const chosen = try @call(.never_inline, policy.choose, .{read});
    if (Chosen == ?usize) return .{ .selected_worker = chosen };
    return .{ .selected_worker = chosen.selected_worker, .state = chosen.state };
}

fn parsed(comptime T: type, input: []const u8) !T {
    var reader: json.Reader = .init(memory, input);
    return reader.read(T) catch |err| {
        problem = reader.problem;
        return err;
    };
}

fn reason(err: anyerror) []const u8 {
    return switch (err) {
        error.Refused, error.PolicyFailed => problem,
        else => @errorName(err),
    };
}
