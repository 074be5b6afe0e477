//! The ELF note by which an operation says what call table it needs (calltable/definition/table.toml).

const root = @import("root").declarations;
const calltable = @import("calltable");

/// The lowest minor version this operation works with; a root file that declares `calltable_minor` may ask for less.
pub const minor: u16 = if (@hasDecl(root, "calltable_minor")) root.calltable_minor else calltable.table_minor;

const Note = extern struct {
    name_size: u32 = calltable.table_note_name.len + 1,
    description_size: u32 = 8,
    kind: u32 = calltable.table_note_type,
    /// Padded to a multiple of four bytes.
    name: [8]u8 = (calltable.table_note_name ++ "\x00" ** (8 - calltable.table_note_name.len)).*,
    major: u16 = calltable.table_major,
    minor: u16 = minor,
    flags: u32 = 0,
};

pub const needs: Note = .{};
