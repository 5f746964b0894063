//! Between a guest's buffers and a file that can't take them as they are: each thread has a buffer
//! of its own, which is made once.

use std::cell::RefCell;
use std::io;

use super::request::SECTOR;
use crate::pieces::Pieces;

/// Its bytes. Our choice: few requests are larger, and they are cut.
const LEN: usize = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Cuts `pieces` into parts that fit this thread's buffer, and calls `each` with the buffer's part,
/// which is aligned to a sector, and how far it is.
pub fn buffered(
    pieces: &mut Pieces,
    mut each: impl FnMut(&mut [u8], u64, &mut Pieces) -> io::Result<()>,
) -> io::Result<()> {
    BUFFER.with_borrow_mut(|memory| {
        let mut done = 0;
        while !pieces.is_empty() {
            let len = pieces.len().min(LEN);
            let room = len + SECTOR as usize;
            if memory.len() < room {
                memory.resize(room, 0);
            }
            let start = memory.as_ptr().align_offset(SECTOR as usize);
            each(&mut memory[start..start + len], done, pieces)?;
            done += len as u64;
        }
        Ok(())
    })
}
