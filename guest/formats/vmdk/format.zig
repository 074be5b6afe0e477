//! Numbers of the VMDK formats that reading and writing share.
//!
//! VMware Virtual Disk Format 5.0 (2011), "Hosted Sparse Extents", "Stream-Optimized Compressed Sparse Extents".  Every
//! number in a file is little endian, every place and length is in sectors of 512 bytes unless it says otherwise.

/// Driver name, as in `-f`.
pub const name = "vmdk";

/// Bytes.
pub const sector = 512;

/// "KDMV" at byte 0: a hosted sparse extent.
pub const magic = "KDMV";
/// "COWD" at byte 0: an ESX Server sparse extent (VMDK3).
pub const cowd_magic = "COWD";

/// The header of a hosted sparse extent (SparseExtentHeader): one sector, of which these are the byte offsets.
pub const header = struct {
    pub const size = sector;
    /// u32: 1; 2 when grains may be marked as zero; 3 when they are compressed, or changed blocks are tracked.
    pub const version = 4;
    /// u32, `flag`.
    pub const flags = 8;
    /// u64: sectors of the disk.
    pub const capacity = 12;
    /// u64: sectors of a grain, a power of two above 8.
    pub const grain_size = 20;
    /// u64: first sector of the embedded descriptor; 0 when there is none.
    pub const descriptor_offset = 28;
    /// u64: sectors of the embedded descriptor.
    pub const descriptor_size = 36;
    /// u32: entries of a grain table.
    pub const table_entries = 44;
    /// u64: first sector of the redundant grain directory.
    pub const redundant_directory = 48;
    /// u64: first sector of the grain directory, or `directory_at_end`.
    pub const directory = 56;
    /// u64: sectors in front of the first grain.
    pub const overhead = 64;
    /// u8: 1 while the image is open.
    pub const unclean = 72;
    /// Four bytes that a transfer as text would change, `newlines`.
    pub const newline_test = 73;
    /// u16, `compression`.
    pub const compression_algorithm = 77;
};

/// Bits of `header.flags`.
pub const flag = struct {
    pub const newline_test: u32 = 1 << 0;
    /// `header.redundant_directory` is valid.
    pub const redundant: u32 = 1 << 1;
    /// A grain table entry of 1 is a grain of zeroes.
    pub const zeroed_grain: u32 = 1 << 2;
    pub const compressed: u32 = 1 << 16;
    /// Markers stand in front of grains and metadata.
    pub const markers: u32 = 1 << 17;
};

/// What `header.newline_test` holds.
pub const newlines = "\n \r\n";

pub const compression = struct {
    pub const none = 0;
    /// A zlib stream (RFC 1950).
    pub const deflate = 1;
};

/// `header.directory` of a stream whose directory is found through the footer, the last but one sector.
pub const directory_at_end: u64 = 0xffff_ffff_ffff_ffff;

/// Bytes of an entry of a grain directory or grain table: a sector number, 0 for nothing.
pub const entry_size = 4;
/// A grain table entry that stands for a grain of zeroes under `flag.zeroed_grain`.
pub const zeroed_entry = 1;

/// What every writer that is known uses for a grain table: 512 entries, 4 sectors.
pub const table_entries = 512;
pub const table_sectors = table_entries * entry_size / sector;

/// In front of a compressed grain: u64 first sector of the grain in the disk, u32 bytes of the stream that follows.
pub const grain_marker = struct {
    pub const size = 12;
    pub const lba = 0;
    pub const length = 8;
};

/// A marker of metadata is one sector: u64 sectors of what follows, u32 0, u32 type.
pub const metadata_marker = struct {
    pub const size = sector;
    pub const sectors = 0;
    pub const length = 8;
    pub const kind = 12;
};

pub const MarkerKind = enum(u32) { end_of_stream = 0, grain_table = 1, grain_directory = 2, footer = 3, _ };

/// Sectors of the embedded descriptor that writers reserve, and of a descriptor that qemu-img looks for CIDs in.
pub const descriptor_sectors = 20;

/// A descriptor's `parentCID` when there is no parent.
pub const no_parent: u32 = 0xffff_ffff;

/// Past this sector no grain can begin: an entry of a grain table has 32 bits.
pub const max_sectors: u64 = 1 << 32;
