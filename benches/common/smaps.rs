//! What a process has in memory (proc(5), smaps).

use std::fs;
use std::ops::Add;

/// KiB.
#[derive(Clone, Copy, Default)]
pub struct Usage {
    /// Of all kinds.
    pub resident: u64,
    /// Nobody else's, and in no file: what a program just built still owes the disk is not it.
    pub private_dirty: u64,
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            resident: self.resident + other.resident,
            private_dirty: self.private_dirty + other.private_dirty,
        }
    }
}

/// A process's mappings, in the order of their addresses; without libraries, which programs share.
pub struct Mappings(Vec<(u64, u64, Usage)>);

impl Mappings {
    /// None of a process that is gone.
    pub fn of(process: u32) -> Self {
        let text = fs::read_to_string(format!("/proc/{process}/smaps")).unwrap_or_default();
        let mut mappings: Vec<(u64, u64, Usage)> = Vec::new();
        let (mut counts, mut is_writable) = (false, false);
        for line in text.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let number = |text| u64::from_str_radix(text, 16).ok();
            if let Some((start, end)) = range.and_then(|(a, b)| number(a).zip(number(b))) {
                counts = !line.contains(".so");
                is_writable = line.split(' ').nth(1).is_some_and(|may| may.contains('w'));
                mappings.extend(counts.then_some((start, end, Usage::default())));
            }
            let Some((_, _, usage)) = mappings.last_mut().filter(|_| counts) else { continue };
            let kib = |name| {
                let value: Option<&str> = line.strip_prefix(name);
                value.map_or(0, |text| text.trim().trim_end_matches(" kB").parse().unwrap_or(0))
            };
            usage.resident += kib("Rss:");
            if is_writable {
                usage.private_dirty += kib("Private_Dirty:");
            }
        }
        Self(mappings)
    }

    /// With those that have no gap between them as one: files in a guest's RAM are neighbours of its rest.
    pub fn joined(self) -> Self {
        let mut joined: Vec<(u64, u64, Usage)> = Vec::new();
        for (start, end, usage) in self.0 {
            match joined.last_mut() {
                Some(last) if last.1 == start => *last = (last.0, end, last.2 + usage),
                _ => joined.push((start, end, usage)),
            }
        }
        Self(joined)
    }

    /// All but the largest one, which is the guest's RAM.
    pub fn beside_largest(&self) -> Usage {
        let largest = (0..self.0.len()).max_by_key(|index| self.0[*index].1 - self.0[*index].0);
        let rest = self.0.iter().enumerate().filter(|(index, _)| Some(*index) != largest);
        rest.fold(Usage::default(), |sum, (_, (_, _, usage))| sum + *usage)
    }
}
