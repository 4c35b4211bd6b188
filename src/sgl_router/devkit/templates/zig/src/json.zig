//! Reads JSON into a Zig type. A policy's author need not touch this file.
//!
//! Unlike `std.json.parseFromSlice` it takes no text for a number, and says where the input is not
//! as the type says: `workers[1].load is a string; expected u32`.

const std = @import("std");

const Allocator = std.mem.Allocator;

/// An object whose keys are known only when it is read, such as the workers' URLs.
pub fn Map(comptime Value: type) type {
    return struct {
        entries: std.StringHashMapUnmanaged(Value) = .empty,

        pub const MapValue = Value;
        const Self = @This();

        pub fn get(map: Self, key: []const u8) ?Value {
            return map.entries.get(key);
        }

        /// Its `next()` gives entries with `key_ptr.*` and `value_ptr.*`.
        pub fn iterator(map: *const Self) std.StringHashMapUnmanaged(Value).Iterator {
            return map.entries.iterator();
        }
    };
}

const Error = error{ Refused, OutOfMemory };
const Token = std.json.Token;

/// Where in the input the reader stands; the steps are on the stack.
const Place = struct {
    parent: ?*const Place = null,
    step: union(enum) { key: []const u8, index: usize } = .{ .key = "" },

    /// Such as `workers[1].load`.
    pub fn format(place: Place, writer: *std.Io.Writer) std.Io.Writer.Error!void {
        const parent = place.parent orelse return writer.writeAll("the input");
        if (parent.parent != null) try parent.format(writer);
        switch (place.step) {
            .index => |index| try writer.print("[{d}]", .{index}),
            .key => |key| try writer.print("{s}{s}", .{ if (parent.parent == null) "" else ".", key }),
        }
    }
};

pub const Reader = struct {
    memory: Allocator,
    scanner: std.json.Scanner,
    length: usize,
    /// Why the input was refused.
    problem: []const u8 = "",

    /// `memory` is freed by whoever gave it. Texts in what is read stay in `input` where they can.
    pub fn init(memory: Allocator, input: []const u8) Reader {
        return .{
            .memory = memory,
            .scanner = .initCompleteInput(memory, input),
            .length = input.len,
        };
    }

    /// The input as a `T`. On `error.Refused`, `problem` says why.
    pub fn read(reader: *Reader, comptime T: type) Error!T {
        const root: Place = .{};
        const value = try reader.any(T, &root);
        if (try reader.next(&root) != .end_of_document) {
            return reader.refuse("the input goes on after its end", .{});
        }
        return value;
    }

    fn any(reader: *Reader, comptime T: type, place: *const Place) Error!T {
        if (T == []const u8) return reader.string(place);
        if (T == std.json.Value) return reader.tree(place);
        switch (@typeInfo(T)) {
            .bool => switch (try reader.next(place)) {
                .true => return true,
                .false => return false,
                else => |token| return reader.unexpected("true or false", token, place),
            },
            .int => {
                const text = try reader.number(@typeName(T), place);
                return std.fmt.parseInt(T, text, 10) catch
                    reader.refuse("{f} is {s}; expected {s}", .{ place, text, @typeName(T) });
            },
            .float => {
                const text = try reader.number("a number", place);
                const value = std.fmt.parseFloat(T, text) catch unreachable;
                if (std.math.isFinite(value)) return value;
                return reader.refuse("{f} is {s}, which is too large", .{ place, text });
            },
            .optional => |optional| {
                const kind = reader.scanner.peekNextTokenType() catch |err| return reader.broken(err, place);
                if (kind != .null) return try reader.any(optional.child, place);
                _ = try reader.next(place);
                return null;
            },
            .pointer => |pointer| return reader.array(pointer.child, place),
            .@"struct" => {
                if (@hasDecl(T, "MapValue")) return reader.map(T, place);
                return reader.object(T, place);
            },
            else => @compileError("JSON is not read into " ++ @typeName(T)),
        }
    }

    fn array(reader: *Reader, comptime Item: type, place: *const Place) Error![]const Item {
        const begin = try reader.next(place);
        if (begin != .array_begin) return reader.unexpected("an array", begin, place);
        var items: std.ArrayList(Item) = .empty;
        while (true) {
            const inside: Place = .{ .parent = place, .step = .{ .index = items.items.len } };
            const kind = reader.scanner.peekNextTokenType() catch |err| return reader.broken(err, &inside);
            if (kind == .array_end) break;
            try items.append(reader.memory, try reader.any(Item, &inside));
        }
        _ = try reader.next(place);
        return items.items;
    }

    fn object(reader: *Reader, comptime T: type, place: *const Place) Error!T {
        const begin = try reader.next(place);
        if (begin != .object_begin) return reader.unexpected("an object", begin, place);
        const info = @typeInfo(T).@"struct";
        const names = info.field_names;
        var value: T = undefined;
        var seen: [names.len]bool = @splat(false);
        while (try reader.key(place)) |found| {
            inline for (names, info.field_types, 0..) |name, Field, index| {
                if (std.mem.eql(u8, name, found)) {
                    const inside: Place = .{ .parent = place, .step = .{ .key = name } };
                    @field(value, name) = try reader.any(Field, &inside);
                    seen[index] = true;
                    break;
                }
            } else reader.scanner.skipValue() catch |err| return reader.broken(err, place);
        }
        inline for (names, info.field_types, info.field_attrs, 0..) |name, Field, attributes, index| {
            if (!seen[index]) {
                @field(value, name) = attributes.defaultValue(Field) orelse {
                    const missing: Place = .{ .parent = place, .step = .{ .key = name } };
                    return reader.refuse("{f} is missing", .{missing});
                };
            }
        }
        return value;
    }

    fn map(reader: *Reader, comptime T: type, place: *const Place) Error!T {
        const begin = try reader.next(place);
        if (begin != .object_begin) return reader.unexpected("an object", begin, place);
        var value: T = .{};
        while (try reader.key(place)) |found| {
            const inside: Place = .{ .parent = place, .step = .{ .key = found } };
            try value.entries.put(reader.memory, found, try reader.any(T.MapValue, &inside));
        }
        return value;
    }

    /// The next key of an object, or null at its end.
    fn key(reader: *Reader, place: *const Place) Error!?[]const u8 {
        switch (try reader.next(place)) {
            inline .string, .allocated_string => |text| return text,
            else => return null, // The scanner allows nothing but an end.
        }
    }

    fn string(reader: *Reader, place: *const Place) Error![]const u8 {
        switch (try reader.next(place)) {
            inline .string, .allocated_string => |text| return text,
            else => |token| return reader.unexpected("a string", token, place),
        }
    }

    fn number(reader: *Reader, comptime expected: []const u8, place: *const Place) Error![]const u8 {
        switch (try reader.next(place)) {
            inline .number, .allocated_number => |text| return text,
            else => |token| return reader.unexpected(expected, token, place),
        }
    }

    fn tree(reader: *Reader, place: *const Place) Error!std.json.Value {
        return std.json.Value.jsonParse(reader.memory, &reader.scanner, .{
            .max_value_len = reader.length,
            .allocate = .alloc_if_needed,
        }) catch |err| reader.broken(err, place);
    }

    fn next(reader: *Reader, place: *const Place) Error!Token {
        return reader.scanner.nextAlloc(reader.memory, .alloc_if_needed) catch |err|
            reader.broken(err, place);
    }

    fn unexpected(reader: *Reader, expected: []const u8, token: Token, place: *const Place) Error {
        const found = switch (token) {
            .object_begin => "an object",
            .array_begin => "an array",
            .true, .false => "true or false",
            .null => "null",
            .number, .allocated_number => "a number",
            .string, .allocated_string => "a string",
            else => "nothing",
        };
        return reader.refuse("{f} is {s}; expected {s}", .{ place, found, expected });
    }

    fn broken(reader: *Reader, err: anyerror, place: *const Place) Error {
        if (err == error.OutOfMemory) return error.OutOfMemory;
        return reader.refuse("{f} is not JSON, byte {d}: {s}", .{
            place, reader.scanner.cursor, @errorName(err),
        });
    }

    fn refuse(reader: *Reader, comptime text: []const u8, values: anytype) Error {
        reader.problem = try std.fmt.allocPrint(reader.memory, text, values);
        return error.Refused;
    }
};
