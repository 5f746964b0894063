//! Unpacks compressed kernels: gzip, zstd, lz4 (legacy frames) and xz.
//!
//! Compressed bytes are foreign: the output has a limit that the caller sets, memory is taken only
//! as it fills, and damage is an error. What follows the stream is left alone, since a bzImage
//! appends the unpacked size and others pad. All decoders are crates in Rust; lz4's legacy frames
//! (lz4 1.9.4 doc/lz4_Frame_format.md, "Legacy frame") and gzip's header (RFC 1952, 2.3) are walked
//! here.

use std::io::Read;

use anyhow::{Context, Result};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use ruzstd::decoding::StreamingDecoder;
use xz4rust::{XzDecoder, XzNextBlockResult};

use super::bad_image;

/// How something is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip: RFC 1952.
    Gzip,
    /// Zstandard: RFC 8878.
    Zstd,
    /// lz4 in legacy frames, as Linux kernels are packed.
    Lz4,
    /// xz: .xz file format 1.2.1, with filters for machine code.
    Xz,
}

/// A legacy frame's magic number.
const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// The most that one block of a legacy frame unpacks to.
const LZ4_BLOCK: usize = 8 << 20;
/// The largest window and dictionary: what `zstd --ultra -22` and `xz` of Linux's build use.
const WINDOW: u64 = 128 << 20;
/// Our choice: what kernels unpack to is three to nine times what they are packed into.
const USUAL_RATIO: usize = 10;
/// Our choice: where the last bytes claim more than this per byte, they are no size.
const BEST_RATIO: usize = 64;

impl Compression {
    /// Tells the compression from the first bytes.
    pub fn recognise(head: &[u8]) -> Option<Self> {
        const MAGICS: &[(Compression, &[u8])] = &[
            (Compression::Gzip, b"\x1f\x8b\x08"),
            (Compression::Zstd, b"\x28\xb5\x2f\xfd"),
            (Compression::Lz4, &LZ4_LEGACY),
            (Compression::Xz, b"\xfd7zXZ\0"),
        ];
        MAGICS.iter().find(|(_, magic)| head.starts_with(magic)).map(|(found, _)| *found)
    }

    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Xz => "xz",
        }
    }
}

/// Unpacks `input`, which begins with a stream of this compression, to at most `limit` bytes.
pub fn unpack(compression: Compression, input: &[u8], limit: u64) -> Result<Vec<u8>> {
    let mut output = Output::new(compression, input, limit)?;
    match compression {
        Compression::Gzip => gzip(input, &mut output)?,
        Compression::Zstd => zstd(input, &mut output)?,
        Compression::Lz4 => lz4(input, &mut output)?,
        Compression::Xz => xz(input, &mut output)?,
    }
    output.finish()
}

/// Zeroed memory for the output. Its untouched part costs nothing but addresses, so it is taken
/// in one piece that is large enough most of the time.
struct Output {
    compression: Compression,
    bytes: Vec<u8>,
    len: usize,
    /// One byte more than allowed: reaching it tells that there is too much.
    most: usize,
}

/// `len` zero bytes, or an error where the host has no room for them.
fn zeroed(len: usize) -> Result<Vec<u8>> {
    // The host's own zeroed pages are cheaper than writing zeros, but can't be asked for without
    // the risk of an abort: so ask for as much in another way first.
    let asked = Vec::<u8>::new().try_reserve_exact(len);
    asked.with_context(|| format!("take {len:#x} bytes to unpack the image"))?;
    Ok(vec![0; len])
}

impl Output {
    fn new(compression: Compression, input: &[u8], limit: u64) -> Result<Self> {
        let most = usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1);
        // gzip ends with the size, and so does what Linux's build packs otherwise.
        let claimed = input.last_chunk().map_or(0, |end| u32::from_le_bytes(*end) as usize);
        let packed = input.len();
        let likely = if (packed..packed.saturating_mul(BEST_RATIO)).contains(&claimed) {
            claimed
        } else {
            packed.saturating_mul(USUAL_RATIO)
        };
        // A block of lz4 needs room for the most that it can have.
        let slack = if compression == Compression::Lz4 { LZ4_BLOCK } else { 1 };
        let bytes = zeroed(likely.saturating_add(slack).min(most))?;
        Ok(Self { compression, bytes, len: 0, most })
    }

    /// Makes the room for more output at least one byte, and `wanted` if the limit allows.
    fn make_room(&mut self, wanted: usize) -> Result<()> {
        if self.bytes.len() - self.len >= wanted.max(1) {
            return Ok(());
        }
        let larger = self.bytes.len().saturating_mul(2).max(self.len.saturating_add(wanted));
        if larger.min(self.most) > self.bytes.len() {
            let mut bytes = zeroed(larger.min(self.most))?;
            bytes[..self.len].copy_from_slice(&self.bytes[..self.len]);
            self.bytes = bytes;
        }
        if self.len == self.bytes.len() { self.too_much() } else { Ok(()) }
    }

    fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.len..]
    }

    fn too_much<T>(&self) -> Result<T> {
        bad_image!(
            "holds {} data that unpack to more than {:#x} bytes",
            self.compression.name(),
            self.most - 1
        )
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        if self.len == self.most {
            return self.too_much();
        }
        self.bytes.truncate(self.len);
        self.bytes.shrink_to_fit();
        Ok(self.bytes)
    }
}

/// The error for data that are not what they should be.
macro_rules! damaged {
    ($compression:expr, $($arg:tt)*) => {
        bad_image!(
            "holds truncated or damaged {} data: {}", $compression, format_args!($($arg)*)
        )
    };
}

/// The deflate stream behind a gzip header.
fn deflated(input: &[u8]) -> Option<&[u8]> {
    const CHECKSUM: u8 = 1 << 1;
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    const RESERVED: u8 = 0xe0;
    let flags = *input.get(3)?;
    let mut rest = input.get(10..)?;
    if flags & EXTRA != 0 {
        let len = u16::from_le_bytes(*rest.first_chunk()?);
        rest = rest.get(2 + usize::from(len)..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            rest = &rest[rest.iter().position(|&byte| byte == 0)? + 1..];
        }
    }
    if flags & CHECKSUM != 0 {
        rest = rest.get(2..)?;
    }
    (flags & RESERVED == 0).then_some(rest)
}

fn gzip(input: &[u8], output: &mut Output) -> Result<()> {
    let Some(mut stream) = deflated(input) else { damaged!("gzip", "its header") };
    let mut state = Box::<DecompressorOxide>::default();
    let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    loop {
        output.make_room(1)?;
        let (status, read, written) =
            decompress(&mut state, stream, &mut output.bytes, output.len, flags);
        stream = &stream[read..];
        output.len += written;
        match status {
            TINFLStatus::Done => break,
            TINFLStatus::HasMoreOutput => {}
            status => damaged!("gzip", "{status:?}"),
        }
    }
    let sum = crc32fast::hash(&output.bytes[..output.len]).to_le_bytes();
    let len = (output.len as u32).to_le_bytes();
    if stream.get(..8) != Some([sum, len].as_flattened()) {
        damaged!("gzip", "the checksum differs");
    }
    Ok(())
}

fn zstd(input: &[u8], output: &mut Output) -> Result<()> {
    let mut decoder = match StreamingDecoder::new_with_max_window_size(input, WINDOW) {
        Ok(decoder) => decoder,
        Err(error) => damaged!("zstd", "{error}"),
    };
    loop {
        output.make_room(1)?;
        match decoder.read(output.room()) {
            Ok(0) => break,
            Ok(len) => output.len += len,
            Err(error) => damaged!("zstd", "{error}"),
        }
    }
    let frame = decoder.into_frame_decoder();
    match frame.get_checksum_from_data() {
        Some(sum) if frame.get_calculated_checksum() != Some(sum) => {
            damaged!("zstd", "the checksum differs")
        }
        _ => Ok(()),
    }
}

fn lz4(input: &[u8], output: &mut Output) -> Result<()> {
    let mut rest = &input[LZ4_LEGACY.len().min(input.len())..];
    loop {
        let Some((size, blocks)) = rest.split_first_chunk() else {
            if rest.is_empty() {
                return Ok(());
            }
            damaged!("lz4", "{} bytes are too many or too few", rest.len());
        };
        // Frames may follow each other; zeros pad; the unpacked size is the last word.
        let len = u32::from_le_bytes(*size) as usize;
        if *size == LZ4_LEGACY {
            rest = blocks;
            continue;
        }
        if len == 0 || (blocks.is_empty() && len == output.len & 0xffff_ffff) {
            return Ok(());
        }
        let Some(block) = blocks.get(..len) else {
            damaged!("lz4", "a block of {len:#x} bytes, of which {:#x} are there", blocks.len());
        };
        output.make_room(LZ4_BLOCK)?;
        let room = output.room();
        let room_len = room.len().min(LZ4_BLOCK);
        match lz4_flex::block::decompress_into(block, &mut room[..room_len]) {
            Ok(written) => output.len += written,
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. })
                if room_len < LZ4_BLOCK =>
            {
                return output.too_much();
            }
            Err(error) => damaged!("lz4", "{error}"),
        }
        rest = &blocks[len..];
    }
}

fn xz(input: &[u8], output: &mut Output) -> Result<()> {
    let mut decoder = XzDecoder::in_heap_with_alloc_dict_size(0, WINDOW as usize);
    let mut rest = input;
    loop {
        output.make_room(1)?;
        let (read, written, end) = match decoder.decode(rest, output.room()) {
            Ok(XzNextBlockResult::NeedMoreData(read, written)) => (read, written, false),
            Ok(XzNextBlockResult::EndOfStream(read, written)) => (read, written, true),
            Err(error) => damaged!("xz", "{error}"),
        };
        rest = &rest[read..];
        output.len += written;
        if end {
            return Ok(());
        }
        if read == 0 && written == 0 {
            damaged!("xz", "they end early");
        }
    }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
