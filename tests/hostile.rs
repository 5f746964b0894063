//! Bad input and hostile guests, by the number of their group in docs/hostile.md. Those that are here have no
//! better place: most tests of a group are beside what they test.

mod common;

#[path = "hostile/faults.rs"]
mod faults;
#[path = "hostile/host_calls.rs"]
mod host_calls;
#[path = "hostile/hygiene.rs"]
mod hygiene;
#[path = "hostile/in_process.rs"]
mod in_process;
#[path = "hostile/limits.rs"]
mod limits;
#[path = "hostile/page.rs"]
mod page;

use common::Ran;

/// It ended well, or as a failure with one line of ours; never by a signal.
fn is_clean(ran: &Ran) -> bool {
    let lines = ran.stderr.lines().count();
    let failed = ran.status == 125 && lines == 1 && ran.stderr.starts_with("bivisor: ");
    !ran.stderr.contains("panicked") && (ran.status == 0 && lines == 0 || failed)
}

fn main() {
    in_process::play();
    let mut trials = host_calls::trials();
    trials.extend(faults::trials());
    trials.extend(hygiene::trials());
    trials.extend(in_process::trials());
    trials.extend(limits::trials());
    trials.extend(page::trials());
    common::conclude(trials);
}
