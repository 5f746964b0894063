//! One request of a driver (virtio v1.3, 5.2.6 "Device Operation"): a header of 16 bytes, data, and
//! a byte for the outcome.
//!
//! The header is read once. Whatever the driver changes after that changes nothing here.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::disk::Disk;
use crate::memory::GuestRam;
use crate::notice;
use crate::pieces::Pieces;
use crate::virtio::chain::{Chain, Malformed};

/// Bytes of a sector, whatever the block size (5.2.4).
pub const SECTOR: u64 = 512;

/// Bytes of a serial number (5.2.6).
pub const SERIAL_LEN: usize = 20;

/// Ranges of one discard or write-zeroes. Our choice: a bound on what one request can ask for.
pub const MAX_RANGES: usize = 32;

/// Sectors of each of them. Our choice: 2 GiB, so that where zeros have to be written the guest's
/// time limits hold.
pub const MAX_SECTORS: u32 = 1 << 22;

/// Bytes of a request's header, and of a range.
const HEADER_LEN: usize = 16;
const RANGE_LEN: usize = 16;

/// The flag of a range whose room may be given back.
const UNMAP: u32 = 1;

/// One request on its way. Made once for each that may be under way, and used again.
pub struct Request {
    /// Its buffers.
    pub chain: Chain,
    /// Where the outcome goes.
    status: Pieces,
    /// Bytes that there were for data.
    room: usize,
}

/// What a request asks for, as far as that is possible. Offsets are in bytes, and what is read or
/// written there is on the disk.
pub enum Asked {
    /// Fill what is writable from this offset.
    Read(u64),
    /// Write what is readable to this offset.
    Write(u64),
    /// What was written is to last.
    Flush,
    /// The serial number.
    Serial,
    /// Ranges that nobody needs.
    Discard,
    /// Ranges that are to be zeros.
    WriteZeroes,
}

/// Why a request is not carried out.
pub enum Refused {
    /// It is not known or not offered.
    Unsupported,
    /// It is wrong.
    Failed,
    /// The host can't.
    Broken(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl Request {
    /// An empty one.
    pub fn new(ram: &Arc<GuestRam>) -> Self {
        Self { chain: Chain::new(ram), status: Pieces::new(ram.clone()), room: 0 }
    }

    /// Bytes of data, before anything is taken out of the buffers: what is left beside a header and a
    /// status.
    pub fn data_len(&self) -> usize {
        let len = self.chain.readable.len() + self.chain.writable.len();
        len.saturating_sub(HEADER_LEN + 1)
    }

    /// Takes the status byte, the last that the device may write, out of the buffers. An error is one
    /// that the driver can't be told.
    pub fn prepare(&mut self) -> Result<(), Malformed> {
        let room = self.chain.writable.len();
        self.room =
            room.checked_sub(1).ok_or(Malformed::Request("a request has no status byte"))?;
        self.chain.writable.split_off(self.room, &mut self.status);
        Ok(())
    }

    /// Writes the outcome, and gives the bytes written to its buffers.
    fn conclude(&mut self, outcome: Result<(), Refused>) -> u32 {
        let status = match outcome {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Refused::Unsupported) => VIRTIO_BLK_S_UNSUPP,
            Err(Refused::Failed | Refused::Broken(_)) => VIRTIO_BLK_S_IOERR,
        };
        self.status.write(&[status as u8]);
        (self.room - self.chain.writable.len()) as u32 + 1
    }
}

/// A disk by its name, for the one line that tells the user that it fails: its guest may ask again and
/// again.
pub struct Named {
    name: String,
    told: AtomicBool,
}

impl Named {
    /// A disk that works so far.
    pub fn new(name: String) -> Self {
        Self { name, told: AtomicBool::new(false) }
    }

    fn fails(&self, error: &io::Error) {
        if !self.told.swap(true, Ordering::Relaxed) {
            notice::say(&format!("virtio-blk: {}: {error}: the guest has an error", self.name));
        }
    }
}

/// Carries requests out.
pub struct Server {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// Its name on the host.
    pub named: Arc<Named>,
    /// Its serial number, filled up with zeros.
    pub serial: [u8; SERIAL_LEN],
    /// Each write lasts before it is told.
    pub write_through: bool,
}

impl Server {
    /// Carries `request` out, and gives the bytes written to its buffers.
    pub fn serve(&self, request: &mut Request) -> Result<u32, Malformed> {
        request.prepare()?;
        let asked = self.asked(&mut request.chain);
        let outcome = asked.and_then(|asked| self.carry_out(asked, &mut request.chain));
        Ok(self.conclude(request, outcome))
    }

    /// Writes the outcome of `request`, and gives the bytes written to its buffers.
    pub fn conclude(&self, request: &mut Request, outcome: Result<(), Refused>) -> u32 {
        if let Err(Refused::Broken(error)) = &outcome {
            self.named.fails(error);
        }
        request.conclude(outcome)
    }

    /// Does what was asked for.
    pub fn carry_out(&self, asked: Asked, chain: &mut Chain) -> Result<(), Refused> {
        match asked {
            Asked::Read(offset) => self.disk.read(&mut chain.writable, offset)?,
            Asked::Write(offset) => {
                self.disk.write(&mut chain.readable, offset)?;
                self.settle()?;
            }
            Asked::Flush => self.disk.flush()?,
            Asked::Serial => {
                // Into a smaller buffer goes what fits.
                chain.writable.write(&self.serial);
            }
            Asked::Discard => {
                self.each_range(&mut chain.readable, |offset, len, flags| match flags {
                    0 => Ok(self.disk.discard(offset, len)?),
                    // 5.2.6.2: the device refuses flags that discard does not have.
                    _ => Err(Refused::Unsupported),
                })?;
            }
            Asked::WriteZeroes => {
                self.each_range(&mut chain.readable, |offset, len, flags| match flags {
                    0 | UNMAP => Ok(self.disk.write_zeroes(offset, len, flags == UNMAP)?),
                    _ => Err(Refused::Unsupported),
                })?;
                self.settle()?;
            }
        }
        Ok(())
    }

    /// Without flushes, what was written has to last now.
    fn settle(&self) -> io::Result<()> {
        if self.write_through { self.disk.flush() } else { Ok(()) }
    }

    /// Takes the header out of the buffers, and checks what it asks for.
    pub fn asked(&self, chain: &mut Chain) -> Result<Asked, Refused> {
        let mut header = [0; HEADER_LEN];
        if chain.readable.read(&mut header) < HEADER_LEN {
            return Err(Refused::Failed);
        }
        let [kind, _, low, high] = [0, 4, 8, 12]
            .map(|at| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes")));
        let sector = u64::from(low) | u64::from(high) << 32;
        let may_write = || match self.disk.is_read_only() {
            true => Err(Refused::Failed),
            false => Ok(()),
        };
        Ok(match kind {
            VIRTIO_BLK_T_IN => Asked::Read(self.place(sector, chain.writable.len() as u64)?),
            VIRTIO_BLK_T_OUT => {
                may_write()?;
                Asked::Write(self.place(sector, chain.readable.len() as u64)?)
            }
            VIRTIO_BLK_T_FLUSH => Asked::Flush,
            VIRTIO_BLK_T_GET_ID => Asked::Serial,
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                may_write()?;
                let len = chain.readable.len();
                if len == 0 || !len.is_multiple_of(RANGE_LEN) || len > MAX_RANGES * RANGE_LEN {
                    return Err(Refused::Failed);
                }
                if kind == VIRTIO_BLK_T_DISCARD { Asked::Discard } else { Asked::WriteZeroes }
            }
            _ => return Err(Refused::Unsupported),
        })
    }

    /// The offset of `len` bytes from `sector` on, if all of them are on the disk.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Refused> {
        let offset = sector.checked_mul(SECTOR).ok_or(Refused::Failed)?;
        let end = offset.checked_add(len).ok_or(Refused::Failed)?;
        if end > self.disk.size() || !len.is_multiple_of(SECTOR) {
            return Err(Refused::Failed);
        }
        Ok(offset)
    }

    /// Calls `each` with offset, bytes and flags of every range in `ranges`; all are checked first.
    fn each_range(
        &self,
        ranges: &mut Pieces,
        each: impl Fn(u64, u64, u32) -> Result<(), Refused>,
    ) -> Result<(), Refused> {
        let mut bytes = [0; MAX_RANGES * RANGE_LEN];
        let count = ranges.read(&mut bytes);
        let parsed = bytes[..count].chunks_exact(RANGE_LEN).map(|range| {
            let sector = u64::from_le_bytes(range[..8].try_into().expect("eight bytes"));
            let sectors = u32::from_le_bytes(range[8..12].try_into().expect("four bytes"));
            let flags = u32::from_le_bytes(range[12..].try_into().expect("four bytes"));
            if sectors > MAX_SECTORS {
                return Err(Refused::Failed);
            }
            let len = u64::from(sectors) * SECTOR;
            Ok((self.place(sector, len)?, len, flags))
        });
        for range in parsed.clone() {
            range?;
        }
        for range in parsed {
            let (offset, len, flags) = range?;
            if len > 0 {
                each(offset, len, flags)?;
            }
        }
        Ok(())
    }
}
