//! How much a long test does. In an emulated host, as cross/runner says that one is, pure code does
//! what it does anywhere, but some thirty times slower: a sample is enough there.

use std::time::Duration;

/// How long a test tries anything that comes to its mind: a minute, or as many seconds as BIVISOR_LONG
/// says, where that is set; else `short`.
pub fn time(short: Duration) -> Duration {
    let Ok(seconds) = std::env::var("BIVISOR_LONG") else { return short };
    Duration::from_secs(seconds.parse().ok().filter(|seconds| *seconds > 1).unwrap_or(60))
}

/// Of `all` rounds, those that are worth their time here.
pub fn rounds(all: usize) -> usize {
    part(all, 20)
}

/// The same for rounds of which each takes long.
pub fn long_rounds(all: usize) -> usize {
    part(all, 200)
}

fn part(all: usize, of: usize) -> usize {
    if std::env::var_os("BIVISOR_EMULATED").is_some() { (all / of).max(1) } else { all }
}
