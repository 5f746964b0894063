//! Address maps and the checks that hold them together at compile time, on any host and for both
//! architectures.

/// A named, half-open range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// For messages.
    pub name: &'static str,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

impl Region {
    /// Past the last byte.
    pub const fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// True if every region is non-empty, does not wrap, and lies wholly past the one before it.
pub const fn ascending_and_disjoint(map: &[Region]) -> bool {
    let mut i = 0;
    let mut end = 0;
    while i < map.len() {
        let region = map[i];
        if region.len == 0 || region.start < end || region.start > u64::MAX - region.len {
            return false;
        }
        end = region.end();
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn region(start: u64, len: u64) -> Region {
        Region { name: "r", start, len }
    }

    #[test]
    fn maps_that_touch_pass_and_maps_that_overlap_wrap_or_are_empty_do_not() {
        assert!(ascending_and_disjoint(&[region(0, 16), region(16, 16)]));
        assert!(!ascending_and_disjoint(&[region(0, 17), region(16, 16)]));
        assert!(!ascending_and_disjoint(&[region(16, 16), region(0, 16)]));
        assert!(!ascending_and_disjoint(&[region(u64::MAX, 2)]));
        assert!(!ascending_and_disjoint(&[region(0, 0)]));
    }
}
