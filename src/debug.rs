//! The vocabulary of debugging that the core and an architecture share: what stops a vCPU, and
//! what its debug registers are to watch. Who asks for it is [`crate::gdb`].

/// Why a vCPU left the guest for its debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trap {
    /// One instruction is done.
    Step,
    /// The instruction at the pc is a breakpoint.
    Software,
    /// The pc is where a debug register waits for it.
    Hardware,
    /// The guest reached memory that a debug register watches, at or near this virtual address.
    Watch(u64),
    /// Something that only the guest can have asked for.
    Foreign,
}

/// What a debug register waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// That the instruction here is about to run.
    Execute,
    /// A read.
    Read,
    /// A write.
    Write,
    /// A read or a write.
    Any,
}

/// One use of a debug register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// What it waits for.
    pub access: Access,
    /// The first virtual address.
    pub address: u64,
    /// Bytes; those of an instruction don't count.
    pub len: u64,
}

/// Debug registers that KVM lets us use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// For instructions.
    pub breakpoints: usize,
    /// For data.
    pub watchpoints: usize,
}
