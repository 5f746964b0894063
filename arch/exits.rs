//! Exits that KVM reports alike on every architecture, decoded from plain numbers.
//!
//! Source: KVM API (Linux Documentation/virt/kvm/api.rst), "The kvm_run structure".

use crate::exit::{Crash, Stop};

/// `KVM_SYSTEM_EVENT_*`.
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;
const SYSTEM_EVENT_CRASH: u32 = 3;

/// `KVM_INTERNAL_ERROR_*`.
const INTERNAL_ERROR_EMULATION: u32 = 1;
const INTERNAL_ERROR_SIMUL_EX: u32 = 2;
const INTERNAL_ERROR_DELIVERY_EV: u32 = 3;
const INTERNAL_ERROR_UNEXPECTED_EXIT_REASON: u32 = 4;

/// `KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`.
const FLAG_INSTRUCTION_BYTES: u64 = 1 << 0;

/// `KVM_EXIT_SYSTEM_EVENT` of this type.
pub fn system_event(kind: u32) -> Stop {
    match kind {
        SYSTEM_EVENT_SHUTDOWN => Stop::PowerOff,
        SYSTEM_EVENT_RESET => Stop::Reset,
        SYSTEM_EVENT_CRASH => Stop::Crash(Crash::new("the guest reported a crash to KVM")),
        other => Stop::Crash(Crash::new(format!("KVM reported the unknown system event {other}"))),
    }
}

/// `KVM_EXIT_FAIL_ENTRY` with the hardware's reason.
pub fn fail_entry(reason: u64) -> Stop {
    Stop::Crash(Crash::new(format!("the CPU refused to enter the guest (reason {reason:#x})")))
}

/// `KVM_EXIT_INTERNAL_ERROR`: `data` are the words that KVM filled. For a failed emulation they
/// are flags, then a byte count and the instruction's bytes.
pub fn internal_error(suberror: u32, data: &[u64]) -> Stop {
    let mut crash = Crash::new(match suberror {
        INTERNAL_ERROR_EMULATION => "KVM could not emulate an instruction".into(),
        INTERNAL_ERROR_SIMUL_EX => "KVM met an exception while it delivered another".into(),
        INTERNAL_ERROR_DELIVERY_EV => "KVM met an exit while it delivered an event".into(),
        INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "KVM met an exit that it does not know".into(),
        other => format!("KVM internal error {other}"),
    });
    if suberror == INTERNAL_ERROR_EMULATION
        && data.first().is_some_and(|flags| flags & FLAG_INSTRUCTION_BYTES != 0)
    {
        let bytes: Vec<u8> = data[1..].iter().flat_map(|word| word.to_le_bytes()).collect();
        if let Some((&len, code)) = bytes.split_first() {
            crash.code = code[..code.len().min(len.into())].to_vec();
        }
    }
    Stop::Crash(crash)
}

/// An exit reason that is not decoded.
pub fn unknown(reason: u32) -> Stop {
    Stop::Crash(Crash::new(format!("KVM left the guest for reason {reason}, which is not handled")))
}

/// `KVM_RUN` failed for something that the guest did: it reached memory that the host can't give.
pub fn memory_fault(guest_addr: Option<u64>) -> Stop {
    let at = guest_addr.map_or(String::new(), |addr| format!(" at {addr:#x}"));
    Stop::Crash(Crash::new(format!(
        "the host could not give the guest the memory{at} it asked for"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crash(stop: Stop) -> Crash {
        match stop {
            Stop::Crash(crash) => crash,
            other => panic!("{other:?} is not a crash"),
        }
    }

    #[test]
    fn a_failed_emulation_carries_the_instruction_bytes_that_kvm_gives() {
        // Three bytes: count, then 0f 0b 90, then rubbish.
        let words =
            [1, u64::from_le_bytes([3, 0x0f, 0x0b, 0x90, 0xff, 0xff, 0xff, 0xff]), u64::MAX];
        assert_eq!(crash(internal_error(1, &words)).code, [0x0f, 0x0b, 0x90]);
        for data in [&[][..], &[0], &[1], &[0, 3]] {
            assert_eq!(crash(internal_error(1, data)).code, [0; 0], "{data:?}");
        }
        let longest = crash(internal_error(1, &[1, 0xff, 0]));
        assert_eq!(longest.code.len(), 15, "a count past the end is cut off");
        assert_eq!(crash(internal_error(2, &words)).code, [0; 0]);
        assert!(crash(internal_error(77, &[])).reason.contains("77"));
    }

    #[test]
    fn system_events_tell_power_off_reset_and_crash_apart() {
        assert!(matches!(system_event(1), Stop::PowerOff));
        assert!(matches!(system_event(2), Stop::Reset));
        assert!(matches!(system_event(3), Stop::Crash(_)));
        assert!(crash(system_event(9)).reason.contains('9'));
    }
}
