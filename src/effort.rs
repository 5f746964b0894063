//! How much a long test does. In an emulated host, as cross/runner says that one is, pure code does
//! what it does anywhere, but some thirty times slower: a sample is enough there.

/// Of `all` rounds, those that are worth their time here.
pub fn rounds(all: usize) -> usize {
    if std::env::var_os("BIVISOR_EMULATED").is_some() { (all / 20).max(1) } else { all }
}
