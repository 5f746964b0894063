//! How much a guest may ask of a device in a second: a token bucket for operations and one for bytes,
//! shared by the queues that are limited together. What is over waits in the guest's ring, and a
//! worker that has to wait sleeps until a timer wakes it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vmm_sys_util::timerfd::TimerFd;

use super::worker::Watch;

/// What a bucket holds, in time. Our choice: short enough that a limit is one, long enough that a
/// worker's wake-ups are few.
const BURST: Duration = Duration::from_millis(100);

/// Per second; without a number there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests of a disk, frames of a network in each direction. Not 0.
    pub operations: Option<u64>,
    /// Bytes of them. Not 0.
    pub bytes: Option<u64>,
}

/// A token bucket, as the moment from which on it has tokens again (ITU-T I.371, "Generic Cell Rate
/// Algorithm"): taking some moves it away, and it is never further back than a full bucket's time.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_second: u64,
    due: Instant,
}

impl Bucket {
    fn new(per_second: u64, now: Instant) -> Self {
        Self { per_second, due: now.checked_sub(BURST).unwrap_or(now) }
    }

    /// Takes tokens, which may be more than there are.
    fn take(&mut self, count: u64, now: Instant) {
        let full = now.checked_sub(BURST).unwrap_or(now);
        let nanos = u128::from(count) * 1_000_000_000 / u128::from(self.per_second.max(1));
        // Longer than a day is as good as for ever, and a number that can be added.
        let time = Duration::from_nanos(nanos.min(86_400_000_000_000) as u64);
        self.due = self.due.max(full) + time;
    }

    /// How long there are none.
    fn wait(&self, now: Instant) -> Duration {
        self.due.saturating_duration_since(now)
    }
}

/// The limit of some queues together.
#[derive(Clone)]
pub struct Limit(Arc<Mutex<[Option<Bucket>; 2]>>);

impl Limit {
    /// One with full buckets; none where nothing is limited.
    pub fn new(rates: Rates) -> Option<Self> {
        let now = Instant::now();
        let bucket = |rate: u64| Bucket::new(rate, now);
        let buckets = [rates.operations.map(bucket), rates.bytes.map(bucket)];
        (rates != Rates::default()).then(|| Self(Arc::new(Mutex::new(buckets))))
    }

    fn take(&self, bytes: u64, now: Instant) {
        let mut buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (bucket, count) in buckets.iter_mut().zip([1, bytes]) {
            bucket.iter_mut().for_each(|bucket| bucket.take(count, now));
        }
    }

    fn wait(&self, now: Instant) -> Duration {
        let buckets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        buckets.iter().flatten().map(|bucket| bucket.wait(now)).max().unwrap_or_default()
    }
}

/// What a worker goes through before it takes something from its queue. Without a limit it is open.
pub struct Gate(Option<(Limit, TimerFd)>);

impl Gate {
    /// One gate of `limit`.
    pub fn new(limit: &Option<Limit>) -> Result<Self> {
        let Some(limit) = limit else { return Ok(Self(None)) };
        Ok(Self(Some((limit.clone(), TimerFd::new().context("create a timer")?))))
    }

    /// Has `watch` tell of queue number `queue` again once a closed gate opens.
    pub fn watch(&self, watch: &Watch, queue: usize) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |(_, timer)| watch.add_wake_up(timer, queue))
    }

    /// True if the worker may go on; else it is woken up when it may.
    pub fn is_open(&mut self) -> io::Result<bool> {
        let Some((limit, timer)) = &mut self.0 else { return Ok(true) };
        let wait = limit.wait(Instant::now());
        if wait.is_zero() {
            return Ok(true);
        }
        timer.reset(wait, None).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        Ok(false)
    }

    /// One operation of so many bytes has gone through.
    pub fn pass(&self, bytes: usize) {
        if let Some((limit, _)) = &self.0 {
            limit.take(bytes as u64, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate_and_one_burst() {
        let start = Instant::now() + Duration::from_secs(60);
        let mut bucket = Bucket::new(1000, start);
        // It was full long ago, and holds no more than that.
        let (mut now, mut taken) = (start + Duration::from_secs(5), 0);
        while now < start + Duration::from_secs(7) {
            if bucket.wait(now).is_zero() {
                bucket.take(1, now);
                taken += 1;
            } else {
                now += bucket.wait(now);
            }
        }
        assert!((2100..=2101).contains(&taken), "{taken} in 2 s and a burst of 0.1 s");
    }

    #[test]
    fn what_is_larger_than_the_bucket_goes_through_and_is_paid_for_later() {
        let now = Instant::now() + Duration::from_secs(60);
        let mut bucket = Bucket::new(1 << 20, now);
        bucket.take(3 << 20, now);
        assert_eq!(bucket.wait(now), Duration::from_secs(3) - BURST);
        // No number overflows.
        let mut bucket = Bucket::new(1, now);
        bucket.take(u64::MAX, now);
        bucket.take(u64::MAX, now);
        assert!(bucket.wait(now) > Duration::from_secs(86_400));
    }

    #[test]
    fn the_scarcer_of_two_counts() {
        let limit = Limit::new(Rates { operations: Some(10), bytes: Some(1 << 20) }).unwrap();
        let now = Instant::now() + Duration::from_secs(60);
        limit.take(2 << 20, now);
        assert!(limit.wait(now) > Duration::from_secs(1), "{:?}", limit.wait(now));
        assert!(Limit::new(Rates::default()).is_none());
    }
}
