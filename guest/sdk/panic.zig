//! std's panic interface (std.debug.FullPanic) with the same sentences, without std.fmt: its code would be a tenth of
//! a small operation.

const sentence = @import("block").sentence;

/// The namespace that a root file calls `panic`; `end` gets the sentence and the return address.
pub fn Panic(comptime end: fn ([]const u8, ?usize) noreturn) type {
    return struct {
        pub const call = end;

        /// `format` has two numbers.  Not known at compile time, or each sentence would have a copy of this.
        noinline fn numbers(format: []const u8, first: u64, second: u64, address: usize) noreturn {
            @branchHint(.cold);
            var buffer: [96]u8 = undefined;
            end(sentence.fill(&buffer, format, &.{ .{ .first = first }, .{ .first = second } }), address);
        }

        pub fn outOfBounds(index: usize, length: usize) noreturn {
            @branchHint(.cold);
            numbers("index out of bounds: index {d}, len {d}", index, length, @returnAddress());
        }

        pub fn startGreaterThanEnd(start: usize, finish: usize) noreturn {
            @branchHint(.cold);
            numbers("start index {d} is larger than end index {d}", start, finish, @returnAddress());
        }

        /// Without the error's name: the names of all errors are a kilobyte in each operation, and the site says more.
        pub fn unwrapError(_: anyerror) noreturn {
            @branchHint(.cold);
            end("attempt to unwrap error", @returnAddress());
        }

        pub fn sentinelMismatch(expected: anytype, _: @TypeOf(expected)) noreturn {
            @branchHint(.cold);
            end("sentinel mismatch", @returnAddress());
        }

        pub fn inactiveUnionField(active: anytype, _: @TypeOf(active)) noreturn {
            @branchHint(.cold);
            end("access of an inactive union field", @returnAddress());
        }

        pub fn sliceCastLenRemainder(_: usize) noreturn {
            @branchHint(.cold);
            end("slice length does not divide exactly into destination elements", @returnAddress());
        }

        pub fn reachedUnreachable() noreturn {
            @branchHint(.cold);
            end("reached unreachable code", @returnAddress());
        }

        pub fn unwrapNull() noreturn {
            @branchHint(.cold);
            end("attempt to use null value", @returnAddress());
        }

        pub fn castToNull() noreturn {
            @branchHint(.cold);
            end("cast causes pointer to be null", @returnAddress());
        }

        pub fn incorrectAlignment() noreturn {
            @branchHint(.cold);
            end("incorrect alignment", @returnAddress());
        }

        pub fn invalidErrorCode() noreturn {
            @branchHint(.cold);
            end("invalid error code", @returnAddress());
        }

        pub fn integerOutOfBounds() noreturn {
            @branchHint(.cold);
            end("integer does not fit in destination type", @returnAddress());
        }

        pub fn integerOverflow() noreturn {
            @branchHint(.cold);
            end("integer overflow", @returnAddress());
        }

        pub fn shlOverflow() noreturn {
            @branchHint(.cold);
            end("left shift overflowed bits", @returnAddress());
        }

        pub fn shrOverflow() noreturn {
            @branchHint(.cold);
            end("right shift overflowed bits", @returnAddress());
        }

        pub fn divideByZero() noreturn {
            @branchHint(.cold);
            end("division by zero", @returnAddress());
        }

        pub fn exactDivisionRemainder() noreturn {
            @branchHint(.cold);
            end("exact division produced remainder", @returnAddress());
        }

        pub fn integerPartOutOfBounds() noreturn {
            @branchHint(.cold);
            end("integer part of floating point value out of bounds", @returnAddress());
        }

        pub fn corruptSwitch() noreturn {
            @branchHint(.cold);
            end("switch on corrupt value", @returnAddress());
        }

        pub fn shiftRhsTooBig() noreturn {
            @branchHint(.cold);
            end("shift amount is greater than the type size", @returnAddress());
        }

        pub fn invalidEnumValue() noreturn {
            @branchHint(.cold);
            end("invalid enum value", @returnAddress());
        }

        pub fn forLenMismatch() noreturn {
            @branchHint(.cold);
            end("for loop over objects with non-equal lengths", @returnAddress());
        }

        pub fn copyLenMismatch() noreturn {
            @branchHint(.cold);
            end("source and destination arguments have non-equal lengths", @returnAddress());
        }

        pub fn memcpyAlias() noreturn {
            @branchHint(.cold);
            end("@memcpy arguments alias", @returnAddress());
        }

        pub fn noreturnReturned() noreturn {
            @branchHint(.cold);
            end("'noreturn' function returned", @returnAddress());
        }
    };
}
